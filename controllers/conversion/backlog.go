package conversion

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/apparate/apparate/api/v1alpha1"
)

// Backlog knows which conversions wait or run, from the events of the cache, so
// that nobody has to list them to count them.
type Backlog struct {
	mu         sync.Mutex
	unfinished map[types.UID]struct{}
}

var _ cache.ResourceEventHandler = (*Backlog)(nil)

// Len is how many conversions wait or run.
func (b *Backlog) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.unfinished)
}

func (b *Backlog) note(o any, gone bool) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	c, ok := o.(*v1alpha1.ImageConversion)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unfinished == nil {
		b.unfinished = map[types.UID]struct{}{}
	}
	if gone || Finished(c) {
		delete(b.unfinished, c.UID)
	} else {
		b.unfinished[c.UID] = struct{}{}
	}
}

// OnAdd implements cache.ResourceEventHandler.
func (b *Backlog) OnAdd(o any, _ bool) { b.note(o, false) }

// OnUpdate implements cache.ResourceEventHandler.
func (b *Backlog) OnUpdate(_, o any) { b.note(o, false) }

// OnDelete implements cache.ResourceEventHandler.
func (b *Backlog) OnDelete(o any) { b.note(o, true) }
