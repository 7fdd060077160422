package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/apparate/apparate/test/images"
)

// plan is what is to be measured.
type plan struct {
	tier
	subjects []subject
	networks []Network
	arms     []arm
}

// subject is an image with what its container does.
type subject struct {
	image string // for images.Build
	// name is the image's in tables, with the operation where it has several.
	name      string
	operation string
	env       []string
	spec      images.Spec
	// names are what each arm starts, "repository:tag", by the arm's name.
	names map[string]string
	// failed are the arms that there is nothing for, by why not.
	failed map[string]error
}

func networkName(n Network) string { return n.Name }
func armName(a arm) string         { return a.name }

func names[T any](all []T, name func(T) string) []string {
	var s []string
	for _, t := range all {
		s = append(s, name(t))
	}
	return s
}

// newPlan reads the command line.
func newPlan(o options) (plan, error) {
	t, ok := tiers()[o.tier]
	if !ok {
		return plan{}, fmt.Errorf("no tier is called %q: there are smoke and core", o.tier)
	}
	if o.rounds >= 0 {
		t.rounds = o.rounds
	}
	if o.bursts >= 0 {
		t.bursts = o.bursts
	}
	if o.steady >= 0 {
		t.steady = o.steady
	}
	if o.limit > 0 {
		t.limit = o.limit
	}
	p := plan{tier: t}
	var errs [3]error
	if o.networks == "" {
		o.networks = strings.Join(t.networks, ",")
	}
	p.networks, errs[0] = choose("network", o.networks, networks(), networkName)
	// The peers are made anew for the bench, which knows the workloads.
	p.arms, errs[1] = choosePlanned(o)
	if o.images != "" {
		t.images, errs[2] = choose("image", o.images, images.All(), func(s string) string { return s })
	}
	if err := errors.Join(errs[:]...); err != nil {
		return plan{}, err
	}
	for _, name := range t.images {
		operations, err := images.Operations(name)
		if err != nil {
			return plan{}, err
		}
		for _, op := range operations {
			s := subject{image: name, name: name, operation: op.Name, env: op.Env, spec: op.Spec, names: map[string]string{}, failed: map[string]error{}}
			if len(operations) > 1 {
				s.name += "/" + op.Name
			}
			p.subjects = append(p.subjects, s)
		}
	}
	return p, nil
}

// choosePlanned returns the arms of the command line. Those of the other build come with
// it, for the arms that it can be compared with.
func choosePlanned(o options) ([]arm, error) {
	var usual, others []arm
	for _, a := range armsOnly() {
		if a.before {
			others = append(others, a)
		} else {
			usual = append(usual, a)
		}
	}
	chosen, err := choose("arm", o.arms, usual, armName)
	if err != nil || o.against == "" {
		return chosen, err
	}
	n := len(chosen)
	for _, other := range others {
		if slices.ContainsFunc(chosen[:n], func(a arm) bool { return a.name == other.again }) {
			chosen = append(chosen, other)
		}
	}
	if len(chosen) == n {
		return nil, fmt.Errorf("--against needs the arm %s or %s: name it with --arms", armApparate, armOwn)
	}
	return chosen, nil
}

// job is one start to be measured.
type job struct {
	subject int
	arm     arm
	network int // -1 for none
}

// round lists every start of one round in random order, so that no arm has the
// machine at its best, nor at its worst.
func (p plan) round(number int) []job {
	var jobs []job
	for s := range p.subjects {
		for _, a := range p.arms {
			if a.kind == local {
				jobs = append(jobs, job{s, a, -1})
				continue
			}
			for n := range p.networks {
				jobs = append(jobs, job{s, a, n})
			}
		}
	}
	rng := rand.New(rand.NewPCG(uint64(number), 5))
	rng.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
	return jobs
}

// shuffled are the arms in an order of the round's own.
func shuffled(arms []arm, round int) []arm {
	all := slices.Clone(arms)
	rand.New(rand.NewPCG(uint64(round), 6)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}
