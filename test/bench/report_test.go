package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/test/link"
)

// example has two images and three arms on one network; one start failed.
func example() *Results {
	r := &Results{
		Tier:     "smoke",
		Machine:  Machine{CPU: "a processor", Cores: 2},
		Networks: []Network{{Name: "LAN1G", Shape: link.Shape{Bits: 1e9, RTT: time.Millisecond}, Measured: link.Measured{Bits: 1e9, RTT: time.Millisecond}}},
		Images: []Image{
			{Name: "a", Size: 100e6, Variants: map[string]Variant{armApparate: {Tag: "v1-apparate", Size: 101e6, Seconds: 5}}},
			{Name: "b", Size: 10e6},
		},
	}
	add := func(image, arm, network string, round int, sec float64, bytes int64) {
		r.Runs = append(r.Runs, Run{
			Image: image, Arm: arm, Network: network, Round: round, Seconds: sec,
			Traffic: link.Counts{Blobs: link.Traffic{Requests: 3, Bytes: bytes}},
		})
	}
	for round := 1; round <= 3; round++ {
		for _, image := range []string{"a", "b"} {
			add(image, armWarm, "", round, 0.5, 0)
			add(image, "stargz", "LAN1G", round, 2, 30e6)
			add(image, "stargz-opt", "LAN1G", round, 4, 30e6)
			add(image, armApparate, "LAN1G", round, 1, 12.5e6)
			add(image, armAgain, "LAN1G", round, 1.1, 12.5e6)
		}
	}
	r.Runs[1].Error = "it fell over\nat length"
	return r
}

func TestView(t *testing.T) {
	v := newView(example())
	if got := v.best("a", "LAN1G", lazy, lazyAhead); got != "stargz" {
		t.Errorf("best lazy peer: %q", got)
	}
	if got := v.best("a", "LAN1G", strong); got != "" {
		t.Errorf("best of none: %q", got)
	}
	if n, sec := v.failed("a", "stargz", "LAN1G"), v.time("a", "stargz", "LAN1G"); n != 1 || sec != 2 {
		t.Errorf("%d failed, %v s", n, sec)
	}
	l, ok := v.limit("a", "LAN1G")
	if want := 0.5 + 5e-3 + 0.1; !ok || math.Abs(l.High-want) > 1e-9 || l.Low != 0.5 {
		t.Errorf("limit %+v, want %v", l, want)
	}
	if _, ok := v.limit("a", "nowhere"); ok {
		t.Error("a limit on a network that was not measured")
	}
	pairs := v.pairs("LAN1G", armApparate, func(string) string { return "stargz" })
	if len(pairs) != 2 || len(pairs[0]) != 3 || pairs[0][0] != 1/startLimit.Seconds() || pairs[1][0] != 0.5 {
		t.Errorf("pairs: %v", pairs)
	}
}

// TestNeeded: a profile says what a start needs only if it has most of it.
func TestNeeded(t *testing.T) {
	for pack, want := range map[int64]float64{0: 12.5e6, 11e6: 11e6, 6e6: 6e6, 5e6: 12.5e6, 20e6: 12.5e6} {
		r := example()
		r.Images[0].Pack = pack
		if got := newView(r).needed("a", "LAN1G"); got != want {
			t.Errorf("a pack of %d bytes: %v are needed, want %v", pack, got, want)
		}
	}
}

// TestMarkdown proves that what was lost is shown as what was won is.
func TestMarkdown(t *testing.T) {
	text := markdown(example())
	for _, want := range []string{
		"2.00 (1 failed)", "- a stargz LAN1G, round 1: it fell over\n", "1.010; 5.0",
		"| layers that are not lazy, LAN1G | stargz | stargz-opt | apparate | apparate-again |", "| apparate | 0.50 (", "differs by a factor of 1.10", "| a | 12.5 | 0.50 | 0.50–0.60 | 1.65–2.00 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "NaN") {
		t.Errorf("NaN in\n%s", text)
	}
}

// TestPlan proves that each round has every start once, in an order of its own.
// TestKept: a conversion of an earlier call has a size, and no time that could be compared.
func TestKept(t *testing.T) {
	r := example()
	r.Images[0].Variants["stargz"] = Variant{Tag: "v1-stargz", Size: 101e6}
	v := newView(r)
	if got := v.conversions(); !strings.Contains(got, "1.010; –") || !strings.Contains(got, "1.010; 5.0") {
		t.Errorf("conversions: %s", got)
	}
	if got := v.otherTargets(); !strings.Contains(got, "| seconds of conversion by stargz's, which starts a node for it | – |") || !strings.Contains(got, "by stargz's | 1.00 ≤") {
		t.Errorf("targets: %s", got)
	}
}

// TestMerge: a call for one image beside an earlier one for two, and one anew.
func TestMerge(t *testing.T) {
	r, later := example(), example()
	before := len(r.Runs)
	later.Tier = "core"
	later.Images = []Image{{Name: "a", Size: 7, Variants: map[string]Variant{armApparate: {Size: r.Images[0].Variants[armApparate].Size}}}, {Name: "new", Size: 8}, {Name: "b", Size: 9}, {Name: "along", Size: 9}}
	later.Networks = []Network{{Name: "WAN200"}, {Name: "LAN1G"}}
	later.Runs = []Run{{Image: "a", Network: "LAN1G", Arm: "stargz", Round: 1, Seconds: 9}, {Image: "new", Network: "WAN200", Arm: "stargz", Round: 1, Seconds: 3}}
	var had int
	for _, run := range r.Runs {
		if run.Image == "a" && run.Network == "LAN1G" {
			had++
		}
	}
	r.merge(later)
	if got := r.Runs[len(r.Runs)-2:]; len(r.Runs) != before-had+2 || got[0].Seconds != 9 || got[1].Image != "new" {
		t.Errorf("%d runs of %d and 2, %d replaced", len(r.Runs), before, had)
	}
	if v := r.Images[0].Variants[armApparate]; v.Seconds == 0 || r.Images[0].Size != 7 || r.Images[1].Size == 9 || r.Images[len(r.Images)-1].Name != "new" {
		t.Errorf("images %+v", r.Images)
	}
	if n := r.Networks; len(n) != 2 || n[0].Name != "LAN1G" || n[1].Name != "WAN200" || !strings.Contains(r.Tier, " and core") {
		t.Errorf("networks %+v, tier %s", n, r.Tier)
	}
	dir := t.TempDir()
	for _, name := range []string{"x", "y"} {
		if err := r.write(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := readAll(filepath.Join(dir, "x") + "," + filepath.Join(dir, "y"))
	if err != nil || len(all.Runs) != len(r.Runs) || len(all.Images) != len(r.Images) || len(all.Bursts) != len(r.Bursts) {
		t.Errorf("the same twice is not the same: %v", err)
	}
	if _, err := readAll(filepath.Join(dir, "x") + ",nothing"); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestPlan(t *testing.T) {
	p, err := newPlan(options{tier: "smoke", images: "nginx", networks: "WAN200,LAN1G", arms: "warm,apparate", rounds: -1, bursts: -1, steady: -1})
	if err != nil {
		t.Fatal(err)
	}
	first := p.round(1)
	if len(first) != 3 || p.networks[0].Name != "LAN1G" {
		t.Errorf("%d starts on %v", len(first), names(p.networks, networkName))
	}
	if _, err := newPlan(options{tier: "smoke", arms: "warm,fast"}); err == nil || !strings.Contains(err.Error(), `"fast"`) {
		t.Errorf("an unknown arm: %v", err)
	}
}

// TestReadme proves that only what is between the markers changes, and that a README
// without them is refused.
// TestAgainst: the other build's starts come with the arms they are compared with, and
// their table says how much of its time ours take.
func TestAgainst(t *testing.T) {
	o := options{tier: "smoke", arms: "warm,apparate", against: "/there/apparate", rounds: -1, bursts: -1, steady: -1}
	p, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(p.arms, armName), ","); got != "warm,apparate,before" {
		t.Errorf("arms %s", got)
	}
	o.against, o.arms = "", ""
	if p, err := newPlan(o); err != nil || strings.Contains(strings.Join(names(p.arms, armName), ","), "before") {
		t.Errorf("without another build: %v, %v", names(p.arms, armName), err)
	}
	if _, err := newPlan(options{tier: "smoke", arms: "warm", against: "/there/apparate"}); err == nil || !strings.Contains(err.Error(), "--arms") {
		t.Errorf("nothing to compare: %v", err)
	}
	r := example()
	for i := range r.Runs {
		if r.Runs[i].Arm == armAgain {
			r.Runs[i].Arm, r.Runs[i].Seconds = armBefore, 2
		}
	}
	if got := newView(r).noise(); !strings.Contains(got, "apparate takes 0.50 (") {
		t.Errorf("noise: %s", got)
	}
}

func TestReadme(t *testing.T) {
	whole := "before\n" + readmeBegin + "old\n" + readmeEnd + "after\n"
	got, err := between(whole, summary(example()))
	if err != nil || !strings.HasPrefix(got, "before\n"+readmeBegin+"Measured on 2 cores") || !strings.HasSuffix(got, readmeEnd+"after\n") || strings.Contains(got, "old\n") {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", readmeBegin, readmeEnd + readmeBegin} {
		if _, err := between(bad, "x"); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestBudget proves that the parts of a start add up to it, also where the daemon's
// events overlap, are missing, or are later than the start.
func TestBudget(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, starts := range map[string]string{
		"whole":   `[{"began":"2026-01-01T00:00:00.1Z","events":{"layers":50,"mounted":90,"created":300},"waitMillis":200,"packWaitMillis":50}]`,
		"overlap": `[{"began":"2026-01-01T00:00:00.1Z","events":{"layers":500,"mounted":90,"created":9000},"waitMillis":20000}]`,
		"bare":    `[{"began":"2026-01-01T00:00:00.1Z"}]`,
	} {
		phases, ok := budget(Run{Began: began, Seconds: 1, Pull: 0.25, Starts: []byte(starts)})
		var sum float64
		for _, p := range phases {
			if sum += p.seconds; p.seconds < 0 {
				t.Errorf("%s: %s takes %v", name, p.name, p.seconds)
			}
		}
		if !ok || math.Abs(sum-1) > 1e-9 {
			t.Errorf("%s: the sum is %v: %v", name, sum, phases)
		}
	}
	for _, starts := range []string{``, `[]`, `{}`, `[{},{}]`} {
		if _, ok := budget(Run{Seconds: 1, Starts: []byte(starts)}); ok {
			t.Errorf("%q is an account", starts)
		}
	}
}

// TestPlots proves that plots are XML with a bar for each figure, and that there are
// none of nothing.
func TestPlots(t *testing.T) {
	all := plots(example())
	if len(all) != 2 {
		t.Errorf("%d plots", len(all))
	}
	for name, text := range all {
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v in\n%s", name, err, text)
			}
		}
		if strings.Contains(text, "NaN") || !strings.Contains(text, "stargz-opt") {
			t.Errorf("%s:\n%s", name, text)
		}
	}
	if n := len(plots(&Results{Networks: []Network{{Name: "LAN1G"}}})); n != 0 {
		t.Errorf("%d plots of nothing", n)
	}
}

// TestStale proves that a stale profile has every second group from elsewhere, and is
// a pack as its table says.
func TestStale(t *testing.T) {
	profileOf := func(pack string, id uint64, sizes ...int64) startProfile {
		p := startProfile{table: &api.Table{}, pack: []byte(pack)}
		for _, n := range sizes {
			p.table.Groups = append(p.table.Groups, api.Group{Size: n, Chunks: []api.Chunk{{ID: id, Size: 1}}})
		}
		return p
	}
	s := stale(profileOf("aabbcc", 1, 2, 2, 2), profileOf("xyyyz", 2, 1, 3, 1))
	if string(s.pack) != "aayyycc" || s.table.Size != 7 || s.table.Groups[1].Chunks[0].ID != 2 || s.table.Groups[2].Size != 2 {
		t.Errorf("%s %+v", s.pack, s.table)
	}
}
