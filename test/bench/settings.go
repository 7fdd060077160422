package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/link"
)

// tier is how much is measured.
type tier struct {
	images, networks []string
	// rounds is how often everything is started at most. No round begins that would not
	// end within limit from the very beginning, by how long the one before took; the
	// first is always made.
	rounds int
	limit  time.Duration
	// bursts and steady are how often these are measured, zero for not at all.
	bursts, steady int
}

func tiers() map[string]tier {
	return map[string]tier{
		"smoke": {images: images.Smoke(), networks: []string{"LAN1G"}, rounds: 3, limit: 27 * time.Minute, bursts: 1, steady: 1},
		"core":  {images: images.Core(), networks: names(networks(), networkName), rounds: 5, limit: 8 * time.Hour, bursts: 3, steady: 3},
	}
}

// networks are those of the tables, in their order.
func networks() []Network {
	return []Network{
		{Name: "LAN1G", Shape: link.Shape{Bits: 1e9, RTT: 500 * time.Microsecond}},
		{Name: "CLOUD", Shape: link.Shape{Bits: 1e9, RTT: time.Millisecond, FirstByte: 25 * time.Millisecond}},
		{Name: "WAN200", Shape: link.Shape{Bits: 200e6, RTT: 5 * time.Millisecond}},
	}
}

// choose returns those of all that the comma separated names choose, in the order of
// all; every one for no names.
func choose[T any](what, names string, all []T, name func(T) string) ([]T, error) {
	if names == "" {
		return all, nil
	}
	var known []string
	for _, t := range all {
		known = append(known, name(t))
	}
	var chosen []T
	want := strings.Split(names, ",")
	for _, n := range want {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("no %s is called %q: there are %s", what, n, strings.Join(known, ", "))
		}
	}
	for i, t := range all {
		if slices.Contains(want, known[i]) {
			chosen = append(chosen, t)
		}
	}
	return chosen, nil
}
