package watch_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/controllers/watch/watchtest"
	oci "github.com/apparate/apparate/converter/registry"
)

// shelves is a registry with many tags behind HTTP.
type shelves struct {
	mu    sync.Mutex
	repos []string
	tags  []string
	moved map[string]string // repository:tag to another manifest
}

func (s *shelves) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	switch {
	case path == "":
	case path == "_catalog":
		s.page(w, r, "repositories", s.repos)
	case strings.HasSuffix(path, "/tags/list"):
		s.page(w, r, "tags", s.tags)
	default:
		repo, tag, _ := strings.Cut(path, "/manifests/")
		s.mu.Lock()
		raw := s.moved[repo+":"+tag]
		s.mu.Unlock()
		if raw == "" {
			raw = fmt.Sprintf(`{"schemaVersion":2,"tag":%q}`, repo+tag)
		}
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(raw)))
		if r.Header.Get("If-None-Match") == `"`+digest+`"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write([]byte(raw))
	}
}

// page answers with a part of a list, and where it goes on.
func (s *shelves) page(w http.ResponseWriter, r *http.Request, key string, all []string) {
	const most = 1000
	from, _ := strconv.Atoi(r.URL.Query().Get("last"))
	to := min(from+most, len(all))
	if to < len(all) {
		w.Header().Set("Link", fmt.Sprintf("<%s?last=%d>; rel=\"next\"", r.URL.Path, to))
	}
	_ = json.NewEncoder(w).Encode(map[string][]string{key: all[from:to]}) // the client may be gone
}

// rules is a set of rules as a scan's interest.
type rules struct{ *match.Set }

func (r rules) Repository(k types.NamespacedName, repo string) bool { return r.Wants(k, repo) }
func (r rules) Tag(k types.NamespacedName, repo, tag string) string {
	d := r.Decide(match.Image{Registry: k, Repository: repo, Tag: tag})
	if !d.Convert {
		return ""
	}
	return d.Rule.Way()
}

// BenchmarkScan scans 50 000 tags in 500 repositories for 200 rules: at first, again
// when nothing has changed, and when 100 new tags are there.
func BenchmarkScan(b *testing.B) {
	s := &shelves{moved: map[string]string{}}
	for i := range 500 {
		s.repos = append(s.repos, fmt.Sprintf("team-%d/app-%d", i%20, i))
	}
	for i := range 100 {
		s.tags = append(s.tags, fmt.Sprintf("v1.%d", i))
	}
	var all []match.Rule
	for i := range 200 {
		all = append(all, match.Rule{
			Key: match.Key{Namespace: "ns", Name: fmt.Sprint("rule-", i)}, Registry: watchtest.Key,
			Namespace: fmt.Sprintf("team-%d", i%20), Repository: fmt.Sprintf("app-[0-9]*%d|other-%d", i/20, i), Tag: `v\d+\.\d+`,
		})
	}
	set, bad := match.Compile([]match.Instance{{Key: watchtest.Key, Enabled: true}}, all)
	if len(bad) > 0 {
		b.Fatal(bad)
	}
	server := httptest.NewServer(s)
	defer server.Close()
	for range b.N {
		session, err := oci.NewSession(oci.Options{PlainHTTP: true}, strings.TrimPrefix(server.URL, "http://"), oci.SessionLimit{QPS: 1e6, Burst: 1e6, Parallel: 16})
		if err != nil {
			b.Fatal(err)
		}
		scanBenchmark(b, s, rules{set}, session)
	}
}

func scanBenchmark(b *testing.B, s *shelves, interest rules, session *oci.Session) {
	done := make(chan watch.ScanResult)
	scanner := &watch.Scanner{
		Interest: interest, Inventory: watch.NewInventory(), MaxRecheck: time.Hour, Now: time.Now,
		Sessions: func(context.Context, types.NamespacedName) (watch.Session, error) { return session, nil },
		Done:     func(_ types.NamespacedName, r watch.ScanResult) { done <- r },
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	scanner.Watch(watch.Target{Key: watchtest.Key, Interval: 24 * time.Hour})
	go func() {
		ended <- scanner.Run(ctx, func(context.Context, watch.Push) (watch.Outcome, error) { return watch.Outcome{}, nil })
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}()
	next := func(what string) {
		r := <-done
		if r.Err != nil {
			b.Fatal(r.Err)
		}
		b.ReportMetric(float64(r.Requests), what+"-requests")
		b.ReportMetric(r.Duration.Seconds(), what+"-s")
		b.ReportMetric(float64(r.Tags), "tags")
	}
	next("first")
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/1e6, "heap-MB")
	scanner.Nudge(watchtest.Key)
	next("unchanged")
	s.tags = append(s.tags, "v2.0") // between scans: nobody reads it
	scanner.Nudge(watchtest.Key)
	next("new")
	s.tags = s.tags[:len(s.tags)-1]
}
