package watch

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/watch/dialect"
)

// replays remembers which events were followed, in two generations: when the
// younger one is full or old, the older one is dropped. So memory is bounded, and
// an event is known for at least the time of one generation or as many events.
type replays struct {
	mu         sync.Mutex
	young, old map[string]struct{}
	since      time.Time
}

const (
	maxReplays   = 50_000
	replayPeriod = maxAge // an event that is older is stale anyway
)

// note returns false for an id that was noted before.
func (r *replays) note(id string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.young) >= maxReplays || now.Sub(r.since) > replayPeriod {
		r.old, r.young, r.since = r.young, nil, now
	}
	if r.young == nil {
		r.young = map[string]struct{}{}
	}
	_, young := r.young[id]
	_, old := r.old[id]
	r.young[id] = struct{}{}
	return !young && !old
}

// forget makes an id new again: it could not be followed.
func (r *replays) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.young, id)
	delete(r.old, id)
}

// twin is how far apart two notifications with the same bytes are taken for one,
// where the sender puts neither an id nor a time into them: a second push of a
// tag looks just like the first there.
const twin = 5 * time.Second

// eventID names an event of a sender: by its own id, else by the bytes of the
// whole notification and the place in it.
func eventID(key types.NamespacedName, d dialect.Name, e dialect.Event, place int, body []byte, now time.Time) string {
	id := e.ID
	if id == "" {
		id = fmt.Sprintf("%x", sha256.Sum256(body))
		if e.Time.IsZero() {
			id += fmt.Sprint(now.UnixNano() / int64(twin))
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%s\n%s\n%d", key, d, id, e.Repository, e.Tag, place))
	return string(sum[:16])
}
