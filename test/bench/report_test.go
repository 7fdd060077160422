package main

import (
	"math"
	"strings"
	"testing"
	"time"

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

// TestMarkdown proves that what was lost is shown as what was won is.
func TestMarkdown(t *testing.T) {
	text := markdown(example())
	for _, want := range []string{
		"2.00 (1 failed)", "- a stargz LAN1G, round 1: it fell over\n", "1.010; 5.0",
		"| apparate | 0.50 (", "differs by a factor of 1.10", "| a | 12.5 | 0.50 | 0.50–0.60 | 1.65–2.00 |",
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
