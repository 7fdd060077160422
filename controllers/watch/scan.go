package watch

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/fault"
	oci "github.com/apparate/apparate/converter/registry"
)

// Session is what a scan needs of a registry; see [oci.Session], which it is.
type Session interface {
	Repositories(ctx context.Context, yield func(names []string) error) error
	Tags(ctx context.Context, repo string, known string, yield func(oci.TagPage) error) (validator string, unchanged bool, err error)
	Look(ctx context.Context, repo, reference, known string) (m oci.Manifest, changed bool, err error)
	Requests() int64
}

// Interest says what somebody wants to know of. Its methods must be quick.
type Interest interface {
	// Repositories returns the repositories that are named literally, and whether
	// anything of the registry is wanted at all.
	Repositories(registry types.NamespacedName) (named []string, wanted bool)
	// Repository says whether some tags of a repository are wanted.
	Repository(registry types.NamespacedName, repo string) bool
	// Tag returns in which way a tag is wanted, "" for not at all. A tag that was
	// handled is reported again when it comes to be wanted in another way.
	Tag(registry types.NamespacedName, repo, tag string) string
}

// looks is how many tags of a registry are looked at side by side; the session
// bounds requests by itself.
const looks = 8

// work is one tag to look at.
type work struct {
	repo, name string
	known      string // digest that needs no report; "" to report in any case
	as         string // how it is wanted
	digest     string // what the list said it is; "" when it did not
	sibling    bool   // an accelerated image is beside it, of which nothing is known
}

// ScanResult is the outcome of one scan.
type ScanResult struct {
	// End is when it ended, Duration how long it took.
	End      time.Time
	Duration time.Duration
	// Repositories and Tags are those that were listed, Requests what that took.
	Repositories, Tags int
	Requests           int64
	// Looked counts the tags that were looked at, Reported those that were taken.
	Looked, Reported int64
	// Err is why the scan is not complete: a fault, or [ErrBusy].
	Err error
}

// scan is one scan of one registry.
type scan struct {
	*Scanner
	target  Target
	session Session
	report  Report

	result           ScanResult
	looked, reported atomic.Int64
	mu               sync.Mutex
	errs             []error // that did not end it
}

// run scans.
func (s *scan) run(ctx context.Context) ScanResult {
	start, before := s.Now(), s.session.Requests()
	err := s.all(ctx)
	s.result.Err = errors.Join(append([]error{err}, s.errs...)...)
	s.result.End, s.result.Duration = s.Now(), s.Now().Sub(start)
	s.result.Requests = s.session.Requests() - before
	s.result.Looked, s.result.Reported = s.looked.Load(), s.reported.Load()
	return s.result
}

func (s *scan) all(ctx context.Context) error {
	named, wanted := s.Interest.Repositories(s.target.Key)
	if !wanted {
		s.Inventory.keep(s.target.Key, nil, true)
		return nil
	}
	repos, err := s.repositories(ctx, named)
	if err != nil {
		return err
	}
	s.result.Repositories = len(repos)
	todo, err := s.list(ctx, repos)
	if err != nil {
		return err
	}
	if err := s.lookAt(ctx, todo); err != nil {
		return err
	}
	s.Inventory.keep(s.target.Key, repos, len(s.errs) == 0)
	return nil
}

// repositories returns those whose tags are wanted.
func (s *scan) repositories(ctx context.Context, named []string) ([]string, error) {
	if len(s.target.Repositories) > 0 {
		return s.wanted(nil, s.target.Repositories), nil
	}
	var repos []string
	err := s.session.Repositories(ctx, func(names []string) error {
		repos = s.wanted(repos, names)
		return nil
	})
	if kind := fault.KindOf(err); len(named) > 0 && (kind == fault.NoCatalog || kind == fault.PullDenied) {
		// What rules name can be scanned without a catalog, as on Docker Hub.
		return s.wanted(nil, named), nil
	}
	return repos, err
}

func (s *scan) wanted(repos, names []string) []string {
	for _, n := range names {
		if s.Interest.Repository(s.target.Key, n) {
			repos = append(repos, n)
		}
	}
	slices.Sort(repos)
	return slices.Compact(repos)
}

// list lists the tags of all repositories and returns what is to be looked at,
// what is new before what is known.
func (s *scan) list(ctx context.Context, repos []string) ([]work, error) {
	var fresh, known []work
	var tags int
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(looks)
	for _, repo := range repos {
		g.Go(func() error {
			n, todo, err := s.listOne(ctx, repo)
			if err != nil {
				return s.goOn(err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			tags += n
			for _, w := range todo {
				if w.known == "" {
					fresh = append(fresh, w)
				} else {
					known = append(known, w)
				}
			}
			return nil
		})
	}
	err := g.Wait()
	s.result.Tags = tags
	return append(fresh, known...), err
}

// listOne lists the tags of a repository.
func (s *scan) listOne(ctx context.Context, repo string) (tags int, todo []work, err error) {
	var names []string
	digests := map[string]string{}
	validator, unchanged, err := s.session.Tags(ctx, repo, s.Inventory.validator(s.target.Key, repo), func(p oci.TagPage) error {
		names = append(names, p.Tags...)
		for t, d := range p.Digests {
			digests[t] = d
		}
		return nil
	})
	switch {
	case fault.KindOf(err) == fault.NotFound:
		// Catalogs list repositories of which the last tag is gone.
	case err != nil:
		return 0, nil, err
	}
	if !unchanged {
		s.Inventory.list(s.target.Key, repo, validator, names)
	}
	now := s.Now()
	for name, t := range s.Inventory.known(s.target.Key, repo) {
		tags++
		if w, ok := s.judge(repo, name, t, digests[name], now); ok {
			todo = append(todo, w)
		}
	}
	slices.SortFunc(todo, func(a, b work) int { return strings.Compare(a.name, b.name) })
	return tags, todo, nil
}

// judge says whether a tag is to be looked at.
func (s *scan) judge(repo, name string, t tag, listed string, now time.Time) (work, bool) {
	w := work{repo: repo, name: name, digest: listed, as: s.Interest.Tag(s.target.Key, repo, name)}
	switch {
	case w.as == "":
		return w, false
	case t.digest == "" || t.handledAs != w.as:
		w.sibling = t.digest == "" && t.accelerated
		return w, true
	case listed != "":
		return w, listed != t.digest
	}
	w.known = t.digest
	return w, t.due(name, now, s.target.Interval, s.MaxRecheck)
}

// lookAt looks at tags and reports those that are new or have moved.
func (s *scan) lookAt(all context.Context, todo []work) error {
	g, ctx := errgroup.WithContext(all)
	g.SetLimit(looks)
	var busy atomic.Bool
	for _, w := range todo {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if busy.Load() && w.known == "" {
				return nil // the next scan comes to it
			}
			err := s.look(ctx, w)
			if errors.Is(err, ErrBusy) {
				if busy.Swap(true) {
					return nil
				}
			}
			return s.goOn(err)
		})
	}
	return errors.Join(g.Wait(), context.Cause(all))
}

// look looks at one tag.
func (s *scan) look(ctx context.Context, w work) error {
	key := s.target.Key
	s.looked.Add(1)
	m, changed, err := s.session.Look(ctx, w.repo, w.name, w.known)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		s.Inventory.drop(key, w.repo, w.name)
		return nil
	case err != nil:
		return err
	case !changed:
		s.Inventory.Seen(key, w.repo, w.name, w.known, w.as, s.Now())
		return nil
	}
	push := Push{Registry: key, Repository: w.repo, Tag: w.name, Manifest: &m, Origin: Scan}
	if w.sibling {
		if push.AcceleratedFrom, err = s.acceleratedFrom(ctx, w); err != nil {
			return err
		}
	}
	if _, err := s.report(ctx, push); err != nil {
		return err
	}
	s.reported.Add(1)
	s.Inventory.Seen(key, w.repo, w.name, m.Digest, w.as, s.Now())
	return nil
}

// acceleratedFrom reads of which digest the image beside a tag was made.
func (s *scan) acceleratedFrom(ctx context.Context, w work) (string, error) {
	m, _, err := s.session.Look(ctx, w.repo, w.name+image.Suffix, "")
	if fault.KindOf(err) == fault.NotFound {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	in, err := converter.Inspect(m)
	if err != nil {
		return "", nil //nolint:nilerr // a broken image beside it is none of ours
	}
	return in.SourceDigest, nil
}

// goOn notes an error of one repository or tag and lets the scan go on, unless
// the others would meet it as well.
func (s *scan) goOn(err error) error {
	if err == nil {
		return nil
	}
	const most = 20
	kind := fault.KindOf(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == fault.Unreachable || kind == fault.NotRegistry || fault.After(err) > 0 || len(s.errs) >= most || errors.Is(err, context.Canceled) {
		return err
	}
	s.errs = append(s.errs, err)
	return nil
}
