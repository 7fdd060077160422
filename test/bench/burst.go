package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/apparate/apparate/test/tools"
)

// copies is how many containers of one image start at once, and mixed how many
// images at most.
const (
	copies = 16
	mixed  = 8
)

// scenario is many starts at once on one node.
type scenario struct {
	name     string
	subjects []subject
	// copies of each subject, which is pulled once.
	copies int
}

// scenarios are those that the plan's images allow.
func (p plan) scenarios() []scenario {
	if len(p.subjects) == 0 {
		return nil
	}
	one := p.subjects[0]
	if i := slices.IndexFunc(p.subjects, func(s subject) bool { return s.image == "nginx" }); i >= 0 {
		one = p.subjects[i]
	}
	all := []scenario{{name: fmt.Sprintf("%d × %s", copies, one.name), subjects: []subject{one}, copies: copies}}
	var different []subject
	for _, s := range p.subjects {
		if len(different) < mixed && !slices.ContainsFunc(different, func(d subject) bool { return d.image == s.image }) {
			different = append(different, s)
		}
	}
	if len(different) > 1 {
		all = append(all, scenario{name: fmt.Sprintf("%d images", len(different)), subjects: different, copies: 1})
	}
	return all
}

// burstArms are those that are compared.
var burstArms = []string{armOverlay, "overlayfs-strong", "stargz", "stargz-opt", "soci", armApparate, armOwn}

// runBursts measures the scenarios on the first network.
func (b *bench) runBursts(ctx context.Context) error {
	if len(b.networks) == 0 {
		return nil
	}
	for round := 1; round <= b.bursts; round++ {
		for _, s := range b.scenarios() {
			for _, a := range shuffled(b.arms, round) {
				if !slices.Contains(burstArms, a.name) {
					continue
				}
				r := Burst{Scenario: s.name, Arm: a.name, Network: b.networks[0].Name, Round: round, Starts: s.copies * len(s.subjects)}
				err := b.burst(ctx, s, a, &r)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					r.Error = err.Error()
				}
				tools.Say(b.progress, "%s, %s: last after %.2f s, first after %.2f s, %.1f MB %s", s.name, a.name, r.Seconds, r.First, mb(r.Bytes), r.Error)
				b.results.Bursts = append(b.results.Bursts, r)
			}
		}
	}
	return nil
}

// burst measures one scenario on a node of its own.
func (b *bench) burst(ctx context.Context, s scenario, a arm, r *Burst) (err error) {
	for _, subject := range s.subjects {
		if err := subject.failed[a.name]; err != nil {
			return err
		}
	}
	wire := b.wires[0]
	h, err := b.newHost(ctx, a, wire.Addr())
	if err != nil {
		return err
	}
	defer func() { err = b.end(ctx, h, err) }()
	var names []string
	for _, subject := range s.subjects {
		names = append(names, subject.names[a.name])
	}
	if err := b.dropCaches(ctx, h, names...); err != nil {
		return err
	}
	before := wire.Counts()
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	began := time.Now()
	ready := make(chan time.Duration, s.copies*len(s.subjects))
	failed := make(chan error, s.copies*len(s.subjects))
	var all sync.WaitGroup
	for i, subject := range s.subjects {
		all.Go(func() {
			ref := wire.Addr() + "/" + subject.names[a.name]
			if err := h.node.Pull(limited, ref, h.snapshotter); err != nil {
				failed <- err
				return
			}
			var group sync.WaitGroup
			for c := range s.copies {
				group.Go(func() {
					_, err := h.node.RunReady(limited, ref, h.snapshotter, fmt.Sprintf("subject-%d-%d", i, c), subject.spec, subject.env...)
					if err != nil {
						failed <- err
						return
					}
					ready <- time.Since(began)
				})
			}
			group.Wait()
		})
	}
	all.Wait()
	traffic := wire.Counts().Sub(before).All()
	r.Bytes, r.Requests = traffic.Bytes, traffic.Requests
	close(ready)
	close(failed)
	for t := range ready {
		r.Seconds = max(r.Seconds, t.Seconds())
		if r.First == 0 || t.Seconds() < r.First {
			r.First = t.Seconds()
		}
	}
	u, err := h.usage()
	if err != nil {
		return err
	}
	r.PeakRSS = u.peak
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
