package watch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/controllers/watch/watchtest"
	"github.com/apparate/apparate/converter/fault"
)

// bench is a scanner whose clock and scans the test moves by hand.
type bench struct {
	t       *testing.T
	fake    *fake
	want    *interest
	scanner *watch.Scanner
	record  *watchtest.Recorder
	done    chan watch.ScanResult

	mu  sync.Mutex
	now time.Time
}

// interval between two scans of a bench, far longer than a test.
const interval = time.Hour

func newBench(t *testing.T, change ...func(*bench)) *bench {
	t.Helper()
	b := &bench{
		t: t, fake: newFake(), want: &interest{all: "estargz"}, record: &watchtest.Recorder{},
		done: make(chan watch.ScanResult, 10), now: time.Unix(1_700_000_000, 0),
	}
	b.scanner = &watch.Scanner{
		Interest: b.want, Inventory: watch.NewInventory(), MaxRecheck: 24 * time.Hour, Retry: interval,
		Sessions: func(context.Context, types.NamespacedName) (watch.Session, error) { return b.fake, nil },
		Done:     func(_ types.NamespacedName, r watch.ScanResult) { b.done <- r },
		Now: func() time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.now
		},
	}
	for _, f := range change {
		f(b)
	}
	return b
}

// run starts the scanner; scans happen when scan is called.
func (b *bench) run() watch.ScanResult {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error, 1)
	b.scanner.Watch(watch.Target{Key: watchtest.Key, Interval: interval})
	go func() { ended <- b.scanner.Run(ctx, b.record.Report) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	})
	return b.wait()
}

func (b *bench) wait() watch.ScanResult {
	b.t.Helper()
	select {
	case r := <-b.done:
		return r
	case <-time.After(30 * time.Second):
		b.t.Fatal("there is no scan")
		return watch.ScanResult{}
	}
}

// scan lets time pass and scans.
func (b *bench) scan(after time.Duration) watch.ScanResult {
	b.t.Helper()
	b.mu.Lock()
	b.now = b.now.Add(after)
	b.mu.Unlock()
	b.scanner.Nudge(watchtest.Key)
	return b.wait()
}

// asked compares what the registry was asked for.
func (b *bench) asked(what string, want ...string) {
	b.t.Helper()
	slices.Sort(want)
	if got := b.fake.asked(); !slices.Equal(got, want) {
		b.t.Errorf("%s: asked for %q, want %q", what, got, want)
	}
}

// reported compares what was reported since the last call.
func (b *bench) reported(what string, want ...string) {
	b.t.Helper()
	var got []string
	for _, p := range b.record.Seen() {
		got = append(got, p.Repository+":"+p.Tag)
	}
	*b.record = watchtest.Recorder{Fails: b.record.Fails}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		b.t.Errorf("%s: reported were %q, want %q", what, got, want)
	}
}

// TestScanCost counts the requests of scans: paging, and one for a tag that is new.
func TestScanCost(t *testing.T) {
	b := newBench(t)
	for _, tag := range []string{"latest", "1.0", "1.1"} {
		b.fake.push("team/app", tag, watchtest.Digest(len(tag)))
	}
	b.fake.push("other/app", "latest", watchtest.Digest(9))
	b.want.set("1.1", "") // nobody wants it
	r := b.run()
	b.asked("the first", "catalog", "tags team/app", "look team/app:latest", "look team/app:1.0")
	b.reported("the first", "team/app:latest", "team/app:1.0")
	if r.Err != nil || r.Requests != 4 || r.Repositories != 1 || r.Tags != 3 || r.Looked != 2 || r.Reported != 2 {
		t.Errorf("%+v", r)
	}
	b.scan(time.Minute)
	b.asked("soon after", "catalog", "tags team/app")
	b.fake.push("team/app", "2.0", watchtest.Digest(7))
	b.scan(time.Minute)
	b.asked("one is new", "catalog", "tags team/app", "look team/app:2.0")
	b.reported("one is new", "team/app:2.0")
	b.fake.remove("team/app", "1.0")
	b.scan(time.Minute)
	b.asked("one is gone", "catalog", "tags team/app")
	tags := 0
	b.scanner.Inventory.Each(watchtest.Key, func(string, string, bool) { tags++ })
	if tags != 3 {
		t.Errorf("%d tags are known", tags)
	}
}

// TestRecheck proves that a tag that is pushed again is found: at the next scan
// where that is likely, later elsewhere, with one request that costs nothing when
// nothing has changed.
func TestRecheck(t *testing.T) {
	b := newBench(t)
	b.fake.push("team/app", "latest", watchtest.Digest(1))
	b.fake.push("team/app", "v1.0", watchtest.Digest(1))
	b.run()
	b.fake.asked()
	b.reported("the first", "team/app:latest", "team/app:v1.0")
	b.scan(interval)
	b.asked("both are young", "catalog", "tags team/app", "look team/app:latest", "look team/app:v1.0")
	b.reported("and have not changed")
	b.scan(100 * 24 * time.Hour)
	b.fake.asked()
	b.scan(interval)
	b.asked("the version is old", "catalog", "tags team/app", "look team/app:latest")
	b.fake.push("team/app", "latest", watchtest.Digest(2))
	b.fake.push("team/app", "v1.0", watchtest.Digest(2))
	b.scan(interval)
	b.reported("latest was pushed again", "team/app:latest")
	b.scan(24 * time.Hour)
	b.reported("the version was, too", "team/app:v1.0")
	b.fake.asked()
	b.scan(interval)
	b.asked("what has moved once is watched", "catalog", "tags team/app", "look team/app:latest", "look team/app:v1.0")
}

func TestRecheckWaits(t *testing.T) {
	const hour = time.Hour
	for _, c := range []struct {
		name      string
		moved     bool
		unchanged time.Duration
		want      time.Duration
	}{
		{"latest", false, 1000 * hour, hour}, {"v1", true, 1000 * hour, hour}, {"v1", false, 0, hour},
		{"v1", false, 16 * hour, 2 * hour}, {"v1", false, 1000 * hour, 24 * hour},
	} {
		if got := watch.Recheck(c.name, c.moved, c.unchanged, hour, 24*hour); got != c.want {
			t.Errorf("%s, moved %v, unchanged for %v: %v, want %v", c.name, c.moved, c.unchanged, got, c.want)
		}
	}
}

// TestScanLists proves that what lists tell is not asked for again.
func TestScanLists(t *testing.T) {
	b := newBench(t, func(b *bench) { b.fake.digests = true })
	b.fake.push("team/app", "latest", watchtest.Digest(1))
	b.run()
	b.fake.asked()
	b.scan(100 * interval)
	b.asked("the list has digests", "catalog", "tags team/app")
	b.fake.push("team/app", "latest", watchtest.Digest(2))
	b.scan(time.Minute)
	b.asked("and shows a push", "catalog", "tags team/app", "look team/app:latest")

	v := newBench(t, func(b *bench) { b.fake.validators = true })
	v.fake.push("team/app", "v1", watchtest.Digest(1))
	v.run()
	v.reported("the first", "team/app:v1")
	v.want.set("v1", "another way")
	v.fake.asked()
	v.scan(time.Minute)
	v.asked("an unchanged list is enough to see that a rule changed", "catalog", "tags team/app", "look team/app:v1")
	v.reported("the rule changed", "team/app:v1")
}

// TestScanRules proves that a change of rules makes a scan report what they came
// to want, and nothing else.
func TestScanRules(t *testing.T) {
	b := newBench(t)
	for _, tag := range []string{"a1", "b1", "c1"} {
		b.fake.push("team/app", tag, watchtest.Digest(1))
	}
	b.want.set("b1", "")
	b.run()
	b.reported("the first", "team/app:a1", "team/app:c1")
	b.want.set("b1", "estargz")
	b.want.set("c1", "estargz linux/amd64")
	b.scan(time.Minute)
	b.reported("b came to be wanted, c in another way", "team/app:b1", "team/app:c1")
}

// TestScanSibling proves that accelerated images are seen beside their sources, and
// looked at once, when nothing is known of the source.
func TestScanSibling(t *testing.T) {
	b := newBench(t)
	b.fake.push("team/app", "v1", watchtest.Digest(1))
	b.fake.push("team/app", "v1-apparate", watchtest.Digest(2))
	b.fake.manifests[watchtest.Digest(2)] = fmt.Sprintf(`{"annotations":{"cloud.tencent.com/apparate.source.digest":%q}}`, watchtest.Digest(1))
	b.run()
	b.asked("at first", "catalog", "tags team/app", "look team/app:v1", "look team/app:v1-apparate")
	if p := b.record.Seen()[0]; p.AcceleratedFrom != watchtest.Digest(1) {
		t.Errorf("%+v", p)
	}
	accelerated := 0
	b.scanner.Inventory.Each(watchtest.Key, func(_, tag string, a bool) {
		if a && tag == "v1" {
			accelerated++
		}
	})
	if accelerated != 1 {
		t.Errorf("%d tags are accelerated", accelerated)
	}
}

// TestScanFailures walks through what can go wrong in a scan.
func TestScanFailures(t *testing.T) {
	b := newBench(t)
	for i := range 5 {
		b.fake.push("team/app", fmt.Sprintf("v%d", i), watchtest.Digest(i))
	}
	b.fake.push("team/bad", "v1", watchtest.Digest(1))
	broken := func(what string) error {
		if strings.HasPrefix(what, "tags team/bad") || what == "look team/app:v3" {
			return fault.NewTemporary(fault.RegistryError, nil, "it failed")
		}
		return nil
	}
	b.fake.fails = broken
	r := b.run()
	b.reported("the rest is reported all the same", "team/app:v0", "team/app:v1", "team/app:v2", "team/app:v4")
	if fault.KindOf(r.Err) != fault.RegistryError {
		t.Errorf("%v", r.Err)
	}
	if _, complete := b.scanner.Inventory.Version(watchtest.Key); complete {
		t.Error("the scan counts as complete")
	}
	b.fake.fails = nil
	b.fake.asked()
	r = b.scan(time.Minute)
	b.asked("only what failed is asked for again", "catalog", "tags team/app", "tags team/bad", "look team/app:v3", "look team/bad:v1")
	if _, complete := b.scanner.Inventory.Version(watchtest.Key); r.Err != nil || !complete {
		t.Errorf("%v, complete %v", r.Err, complete)
	}

	// A registry that asks for rest gets it.
	b.fake.fails = func(string) error {
		return fault.NewTemporary(fault.RegistryError, nil, "too many requests").WithAfter(time.Hour)
	}
	b.fake.asked()
	if r = b.scan(time.Minute); fault.After(r.Err) != time.Hour {
		t.Errorf("%v", r.Err)
	}
	b.asked("nothing after the first refusal", "catalog")
}

// TestScanBusy proves that a scan stops adding when enough waits, and goes on later.
func TestScanBusy(t *testing.T) {
	b := newBench(t)
	for i := range 50 {
		b.fake.push("team/app", fmt.Sprintf("v%d", i), watchtest.Digest(i))
	}
	var mu sync.Mutex
	taken := 0
	b.record.Fails = func(watch.Push) error {
		mu.Lock()
		defer mu.Unlock()
		if taken >= 10 {
			return fmt.Errorf("%w (10)", watch.ErrBusy)
		}
		taken++
		return nil
	}
	r := b.run()
	if !errors.Is(r.Err, watch.ErrBusy) || r.Reported != 10 || r.Looked > 20 {
		t.Errorf("%+v", r)
	}
	taken = -100
	if r = b.scan(time.Minute); r.Err != nil || r.Reported != 40 {
		t.Errorf("%+v", r)
	}
}

// TestScanWithoutCatalog proves that what rules name is found without one.
func TestScanWithoutCatalog(t *testing.T) {
	b := newBench(t, func(b *bench) { b.fake.noCatalog, b.want.named = true, []string{"team/app"} })
	b.fake.push("team/app", "v1", watchtest.Digest(1))
	if r := b.run(); r.Err != nil {
		t.Error(r.Err)
	}
	b.reported("by its name", "team/app:v1")
	b.want.named = nil
	if r := b.scan(time.Minute); fault.KindOf(r.Err) != fault.NoCatalog {
		t.Errorf("%+v", r)
	}
	b.fake.asked()
	b.want.none = true
	if r := b.scan(time.Minute); r.Err != nil || r.Requests != 0 {
		t.Errorf("nothing is wanted: %+v", r)
	}
}

// TestSources holds both sources against the contract.
func TestSources(t *testing.T) {
	t.Run("scanner", func(t *testing.T) {
		watchtest.Suite(t, func(t *testing.T) watchtest.World {
			f := newFake()
			s := &watch.Scanner{
				Interest: &interest{all: "x"}, Inventory: watch.NewInventory(), MaxRecheck: 20 * time.Millisecond, Retry: 10 * time.Millisecond, Now: time.Now,
				Sessions: func(context.Context, types.NamespacedName) (watch.Session, error) { return f, nil },
				Done:     func(types.NamespacedName, watch.ScanResult) {},
			}
			s.Watch(watch.Target{Key: watchtest.Key, Interval: 20 * time.Millisecond})
			return watchtest.World{Source: s, Push: f.push}
		})
	})
	t.Run("endpoint", func(t *testing.T) { watchtest.Suite(t, newSender) })
}
