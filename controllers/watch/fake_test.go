package watch_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/converter/fault"
	oci "github.com/apparate/apparate/converter/registry"
)

// fake is a registry in memory. The real one is in test/control.
type fake struct {
	mu           sync.Mutex
	repositories map[string]map[string]string // tag to digest
	manifests    map[string]string            // digest to JSON, where it matters
	digests      bool                         // lists have digests, as Google's
	validators   bool                         // lists have an ETag
	noCatalog    bool
	fails        func(what string) error // may be nil
	requests     atomic.Int64
	log          []string // what was asked for
}

func newFake() *fake {
	return &fake{repositories: map[string]map[string]string{}, manifests: map[string]string{}}
}

func (f *fake) push(repo, tag, digest string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.repositories[repo] == nil {
		f.repositories[repo] = map[string]string{}
	}
	f.repositories[repo][tag] = digest
}

func (f *fake) remove(repo, tag string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.repositories[repo], tag)
}

// asked returns what was asked for since the last call.
func (f *fake) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.log
	f.log = nil
	slices.Sort(all)
	return all
}

func (f *fake) ask(what string) error {
	f.requests.Add(1)
	f.log = append(f.log, what)
	if f.fails != nil {
		return f.fails(what)
	}
	return nil
}

func (f *fake) Requests() int64 { return f.requests.Load() }

func (f *fake) Repositories(_ context.Context, yield func([]string) error) error {
	f.mu.Lock()
	err := f.ask("catalog")
	names := slices.Sorted(maps.Keys(f.repositories))
	f.mu.Unlock()
	if f.noCatalog {
		return fault.New(fault.NoCatalog, nil, "no catalog")
	}
	if err != nil {
		return err
	}
	return yield(names)
}

func (f *fake) Tags(_ context.Context, repo, known string, yield func(oci.TagPage) error) (string, bool, error) {
	f.mu.Lock()
	err := f.ask("tags " + repo)
	tags := maps.Clone(f.repositories[repo])
	f.mu.Unlock()
	switch {
	case err != nil:
		return "", false, err
	case tags == nil:
		return "", false, fault.New(fault.NotFound, nil, "%s does not exist", repo)
	}
	names := slices.Sorted(maps.Keys(tags))
	validator := ""
	if f.validators {
		if validator = fmt.Sprint(names); validator == known {
			return known, true, nil
		}
	}
	for page := range slices.Chunk(names, 1000) {
		p := oci.TagPage{Tags: page}
		if f.digests {
			p.Digests = tags
		}
		if err := yield(p); err != nil {
			return "", false, err
		}
	}
	return validator, false, nil
}

func (f *fake) Look(_ context.Context, repo, reference, known string) (oci.Manifest, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ask("look " + repo + ":" + reference); err != nil {
		return oci.Manifest{}, false, err
	}
	digest, ok := f.repositories[repo][reference]
	if !ok {
		return oci.Manifest{}, false, fault.New(fault.NotFound, nil, "%s:%s does not exist", repo, reference)
	}
	raw := f.manifests[digest]
	if raw == "" {
		raw = "{}"
	}
	return oci.Manifest{Digest: digest, Raw: []byte(raw)}, digest != known, nil
}

var _ watch.Session = (*fake)(nil)

// interest wants repositories that begin with "team/", in the way that is set for
// each tag, or for all.
type interest struct {
	mu    sync.Mutex
	way   map[string]string
	all   string
	named []string
	none  bool
}

func (i *interest) Repositories(types.NamespacedName) ([]string, bool) { return i.named, !i.none }

func (i *interest) Repository(_ types.NamespacedName, repo string) bool {
	return len(repo) > 5 && repo[:5] == "team/"
}

func (i *interest) Tag(_ types.NamespacedName, _, tag string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if w, ok := i.way[tag]; ok {
		return w
	}
	return i.all
}

func (i *interest) set(tag, way string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.way == nil {
		i.way = map[string]string{}
	}
	i.way[tag] = way
}
