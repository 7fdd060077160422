// Package accelerationrule keeps the rules: the book in which they are ready to
// decide, the status of each, and the way of a push from its report to an
// ImageConversion.
package accelerationrule

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/watch"
)

// Book has all rules of the cluster, ready to decide, and follows their changes.
// It is kept in every replica of the operator, since each takes notifications.
type Book struct {
	// Cache has Registries and AccelerationRules.
	Cache ctrlcache.Cache
	// Changed is called with each registry instance for which something else is
	// decided than before. It must not block, and may be nil.
	Changed func(match.Key)

	stale atomic.Bool
	wake  chan struct{}
	mu    sync.Mutex
	page  *page
}

// page is one state of the book.
type page struct {
	set *match.Set
	bad map[match.Key]error
	// prints tells of each registry what is decided for it.
	prints map[match.Key]string
}

var _ watch.Interest = (*Book)(nil)

// NewBook makes a book over a cache.
func NewBook(c ctrlcache.Cache) *Book {
	b := &Book{Cache: c, wake: make(chan struct{}, 1)}
	b.stale.Store(true)
	return b
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (b *Book) NeedLeaderElection() bool { return false }

// settle is how long to wait for more changes of rules before anything is done
// about them: many come at once, as when a chart is installed.
const settle = 200 * time.Millisecond

// Start follows changes until the context ends.
func (b *Book) Start(ctx context.Context) error {
	turn := func(any) {
		b.stale.Store(true)
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	for _, o := range []client.Object{&v1alpha1.Registry{}, &v1alpha1.AccelerationRule{}} {
		informer, err := b.Cache.GetInformer(ctx, o)
		if err != nil {
			return fmt.Errorf("following %T: %w", o, err)
		}
		_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: turn, DeleteFunc: turn,
			UpdateFunc: func(before, after any) {
				// Status alone changes nothing here.
				if before.(client.Object).GetGeneration() != after.(client.Object).GetGeneration() {
					turn(after)
				}
			},
		})
		if err != nil {
			return fmt.Errorf("following %T: %w", o, err)
		}
	}
	var before map[match.Key]string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		p, err := b.current(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		b.tell(before, p.prints)
		before = p.prints
	}
}

// tell calls Changed for each registry whose print differs.
func (b *Book) tell(before, now map[match.Key]string) {
	if b.Changed == nil {
		return
	}
	for key := range now {
		if before[key] != now[key] {
			b.Changed(key)
		}
	}
}

// current returns the state of now.
func (b *Book) current(ctx context.Context) (*page, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stale.Swap(false) { // before reading: a change meanwhile makes it stale again
		return b.page, nil
	}
	p, err := b.read(ctx)
	if err != nil {
		b.stale.Store(true)
		return nil, err
	}
	b.page = p
	return p, nil
}

func (b *Book) read(ctx context.Context) (*page, error) {
	var registries v1alpha1.RegistryList
	var rules v1alpha1.AccelerationRuleList
	for _, l := range []client.ObjectList{&registries, &rules} {
		if err := b.Cache.List(ctx, l, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("reading rules: %w", err)
		}
	}
	p := &page{prints: map[match.Key]string{}}
	var instances []match.Instance
	for i := range registries.Items {
		in := match.InstanceOf(&registries.Items[i])
		instances = append(instances, in)
		p.prints[in.Key] = fmt.Sprintln(in)
	}
	var all []match.Rule
	for i := range rules.Items {
		r := match.RuleOf(&rules.Items[i])
		all = append(all, r)
		p.prints[r.Registry] += "" // a rule may come before its registry
	}
	slices.SortFunc(all, func(a, b match.Rule) int { return a.Created.Compare(b.Created) })
	for _, r := range all {
		p.prints[r.Registry] += fmt.Sprintln(r)
	}
	p.set, p.bad = match.Compile(instances, all)
	return p, nil
}

// Set returns all rules, ready to decide.
func (b *Book) Set(ctx context.Context) (*match.Set, error) {
	p, err := b.current(ctx)
	if err != nil {
		return nil, err
	}
	return p.set, nil
}

// set is Set where no error can be returned: the last good state, if need be.
func (b *Book) set() *match.Set {
	p, err := b.current(context.Background())
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if p = b.page; p == nil {
			s, _ := match.Compile(nil, nil)
			return s
		}
	}
	return p.set
}

// Repositories implements watch.Interest.
func (b *Book) Repositories(registry match.Key) (named []string, wanted bool) {
	s := b.set()
	if i, ok := s.Instance(registry); !ok || !i.Enabled {
		return nil, false
	}
	return s.Repositories(registry)
}

// Repository implements watch.Interest.
func (b *Book) Repository(registry match.Key, repo string) bool { return b.set().Wants(registry, repo) }

// Tag implements watch.Interest: the way in which the tag would be converted.
func (b *Book) Tag(registry match.Key, repo, tag string) string {
	d := b.set().Decide(match.Image{Registry: registry, Repository: repo, Tag: tag})
	if !d.Convert {
		return ""
	}
	return d.Rule.Way()
}

// Wanted says whether a conversion is still wanted: its rule exists, matches, and
// is not held up. Reason and message are for what is not: ReasonRuleGone for
// good, any other for now.
func (b *Book) Wanted(ctx context.Context, c *v1alpha1.ImageConversion) (ok bool, reason, message string, err error) {
	s, err := b.Set(ctx)
	if err != nil {
		return false, "", "", err
	}
	img := match.Image{
		Registry:   match.Key{Namespace: c.Namespace, Name: c.Spec.RegistryRef.Name},
		Repository: c.Spec.Repository, Tag: c.Spec.Tag,
	}
	if c.Spec.RuleRef == nil { // by hand: only the switch counts
		if i, found := s.Instance(img.Registry); found && !i.Enabled {
			return false, v1alpha1.ReasonAccelerationDisabled, fmt.Sprintf("image acceleration is off in registry %q: set its spec.accelerationEnabled to true", img.Registry.Name), nil
		}
		return true, "", "", nil
	}
	d := s.Decide(img)
	if !d.Convert {
		return false, d.Reason, s.Explain(img, d), nil
	}
	return true, "", "", nil
}
