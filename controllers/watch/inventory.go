package watch

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/api/image"
)

// Inventory is what registries were seen to have. It is a memory and no truth:
// after a restart the first scan fills it again.
type Inventory struct {
	mu         sync.Mutex
	registries map[types.NamespacedName]*shelf
}

// shelf is what one registry has.
type shelf struct {
	repositories map[string]*repository
	complete     bool  // a scan went through
	version      int64 // changes with the content
}

type repository struct {
	validator string // of its list of tags
	tags      map[string]*tag
}

// tag is one tag that somebody wanted to know of, or one that nobody did.
type tag struct {
	digest      string    // empty until it was looked at
	looked      time.Time // when it was last looked at
	changed     time.Time // when this digest was first seen
	moved       bool      // it had another digest before
	handledAs   string    // how the push of this digest was wanted when it was taken; see Interest
	accelerated bool      // an accelerated image is beside it
}

// NewInventory makes an empty one.
func NewInventory() *Inventory {
	return &Inventory{registries: map[types.NamespacedName]*shelf{}}
}

// shelfOf returns the registry's part; the caller holds the lock.
func (i *Inventory) shelfOf(key types.NamespacedName) *shelf {
	s := i.registries[key]
	if s == nil {
		s = &shelf{repositories: map[string]*repository{}}
		i.registries[key] = s
	}
	return s
}

// tagOf returns a tag, making it if need be; the caller holds the lock.
func (s *shelf) tagOf(repo, name string) *tag {
	r := s.repositories[repo]
	if r == nil {
		r = &repository{tags: map[string]*tag{}}
		s.repositories[repo] = r
	}
	t := r.tags[name]
	if t == nil {
		t = &tag{}
		r.tags[name] = t
		s.version++
	}
	return t
}

// Seen notes that a push of a tag's digest was taken, while it was wanted in the
// way that as names; see [Interest]. With the zero time the next scan looks at the
// tag in any case.
func (i *Inventory) Seen(key types.NamespacedName, repo, name, digest, as string, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.shelfOf(key).tagOf(repo, name).see(digest, as, now)
}

func (t *tag) see(digest, as string, now time.Time) {
	if t.digest != digest {
		t.moved = t.digest != ""
		t.digest, t.changed = digest, now
	}
	t.looked, t.handledAs = now, as
}

// Digest is what a tag was when it was last looked at; empty when it is not known.
func (i *Inventory) Digest(key types.NamespacedName, repo, name string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r := i.shelfOf(key).repositories[repo]; r != nil && r.tags[name] != nil {
		return r.tags[name].digest
	}
	return ""
}

// Accelerated notes that a tag has an accelerated image beside it.
func (i *Inventory) Accelerated(key types.NamespacedName, repo, name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.shelfOf(key)
	if t := s.tagOf(repo, name); !t.accelerated {
		t.accelerated = true
		s.version++
	}
}

// Forget drops a registry.
func (i *Inventory) Forget(key types.NamespacedName) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.registries, key)
}

// list replaces the names of a repository's tags by those that the registry has.
func (i *Inventory) list(key types.NamespacedName, repo, validator string, names []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.shelfOf(key)
	there := make(map[string]bool, len(names))
	for _, n := range names {
		there[n] = true
	}
	for _, n := range names {
		if image.IsAcceleratedTag(n) {
			continue
		}
		t := s.tagOf(repo, n)
		if now := there[n+image.Suffix]; t.accelerated != now {
			t.accelerated = now
			s.version++
		}
	}
	r := s.repositories[repo]
	if r == nil {
		return // no tags at all
	}
	r.validator = validator
	for n := range r.tags {
		if !there[n] {
			delete(r.tags, n)
			s.version++
		}
	}
}

// keep drops the repositories that the registry no longer has, or nobody wants.
func (i *Inventory) keep(key types.NamespacedName, repos []string, complete bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.shelfOf(key)
	there := make(map[string]bool, len(repos))
	for _, r := range repos {
		there[r] = true
	}
	for r := range s.repositories {
		if !there[r] {
			delete(s.repositories, r)
			s.version++
		}
	}
	if complete && !s.complete {
		s.complete = true
		s.version++
	}
}

// drop forgets a tag that is gone.
func (i *Inventory) drop(key types.NamespacedName, repo, name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.shelfOf(key)
	if r := s.repositories[repo]; r != nil {
		delete(r.tags, name)
		s.version++
	}
}

// validator is the one of a repository's list of tags, "" for none.
func (i *Inventory) validator(key types.NamespacedName, repo string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r := i.shelfOf(key).repositories[repo]; r != nil {
		return r.validator
	}
	return ""
}

// known returns copies of what is known of a repository's tags.
func (i *Inventory) known(key types.NamespacedName, repo string) map[string]tag {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.shelfOf(key).repositories[repo]
	if r == nil {
		return nil
	}
	all := make(map[string]tag, len(r.tags))
	for n, t := range r.tags {
		all[n] = *t
	}
	return all
}

// Version changes whenever Each would show something else; complete says that
// the registry was scanned wholly.
func (i *Inventory) Version(key types.NamespacedName) (version int64, complete bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.shelfOf(key)
	return s.version, s.complete
}

// Each calls f for every tag of a registry that is known, whoever wants it. It
// must not call the inventory.
func (i *Inventory) Each(key types.NamespacedName, f func(repo, tag string, accelerated bool)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for repo, r := range i.shelfOf(key).repositories {
		for name, t := range r.tags {
			f(repo, name, t.accelerated)
		}
	}
}
