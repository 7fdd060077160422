package main

import (
	"encoding/json"
	"math"
	"time"
)

// startAccount is what our daemon says of one start, as GET /starts shows it.
type startAccount struct {
	Image          string             `json:"image"`
	Began          time.Time          `json:"began"`
	Events         map[string]float64 `json:"events"`
	WaitMillis     float64            `json:"waitMillis"`
	PackWaitMillis float64            `json:"packWaitMillis"`
	DecodeMillis   float64            `json:"decodeMillis"`
	DemandRequests float64            `json:"demandRequests"`
}

// phase is a part of a start; the phases of a start add up to it.
type phase struct {
	name    string
	seconds float64
}

// budget takes a start apart by the daemon's account of it.
func budget(r Run) ([]phase, bool) {
	var all []startAccount
	if r.Error != "" || json.Unmarshal(r.Starts, &all) != nil || len(all) != 1 {
		return nil, false
	}
	a := all[0]
	offset := a.Began.Sub(r.Began).Seconds()
	last := 0.0
	var phases []phase
	// The events overlap; each phase is what an event came later than all before it.
	until := func(name string, at float64) {
		at = min(max(at, last), r.Seconds)
		phases = append(phases, phase{name, at - last})
		last = at
	}
	event := func(name string) float64 {
		ms, ok := a.Events[name]
		if !ok {
			return last
		}
		return offset + ms/1000
	}
	until("containerd: tag, manifest, config", offset)
	until("indexes", event("layers"))
	until("merge, build, mount", event("mounted"))
	until("end of pull", r.Pull)
	until("container created", event("created"))
	rest := r.Seconds - last
	// Reads that wait at the same time are added up there; no more than all is waited.
	wait := min(a.WaitMillis/1000, rest)
	pack := 0.0
	if a.WaitMillis > 0 {
		pack = wait * min(1, a.PackWaitMillis/a.WaitMillis)
	}
	return append(phases,
		phase{"waiting for the pack", pack},
		phase{"waiting for misses", wait - pack},
		phase{"runtime, kernel, program", rest - wait},
	), true
}

// budgets is the table of where the time of an arm goes, from the run whose time is
// nearest to the median.
func (v *view) budgets(arm, network string) string {
	var t table
	for _, i := range v.Images {
		middle := v.time(i.Name, arm, network)
		var nearest *Run
		for _, r := range v.of(i.Name, arm, network) {
			if _, ok := budget(r); ok && (nearest == nil || math.Abs(r.Seconds-middle) < math.Abs(nearest.Seconds-middle)) {
				nearest = &r
			}
		}
		if nearest == nil {
			continue
		}
		phases, _ := budget(*nearest)
		if len(t.rows) == 0 {
			head := []string{"ms of a start, " + arm + ", " + network}
			for _, p := range phases {
				head = append(head, p.name)
			}
			t.add(append(head, "all", "warm start", "limit")...)
		}
		row := []string{i.Name}
		for _, p := range phases {
			row = append(row, number(1000*p.seconds))
		}
		warm, limit := v.time(i.Name, armWarm, network), math.NaN()
		if l, ok := v.limit(i.Name, network); ok {
			limit = l.High
		}
		t.add(append(row, number(1000*nearest.Seconds), number(1000*warm), number(1000*limit))...)
	}
	return t.String()
}
