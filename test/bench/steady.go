package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/apparate/apparate/test/link"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// steadyArms are those whose steady state is compared. The last one comes of itself with
// the one before.
var steadyArms = []string{armOverlay, "erofs-eager", "stargz", armApparate, armLocal}

// runSteady measures what an image that is all local costs to use.
func (b *bench) runSteady(ctx context.Context) error {
	if len(b.subjects) == 0 {
		return nil
	}
	s := b.subjects[0] // the one with many files, where it is there
	if i := slices.IndexFunc(b.subjects, func(s subject) bool { return s.image == "golang" }); i >= 0 {
		s = b.subjects[i]
	}
	for round := 1; round <= b.steady; round++ {
		for _, a := range shuffled(b.arms, round) {
			if !slices.Contains(steadyArms, a.name) {
				continue
			}
			of := []string{a.name}
			if a.name == armApparate {
				of = append(of, armLocal)
			}
			records := make([]Steady, len(of))
			for i, name := range of {
				records[i] = Steady{Arm: name, Image: s.name, Round: round, Seconds: map[string]float64{}}
			}
			err := b.steadyState(ctx, s, a, records)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			for _, r := range records {
				if err != nil {
					r.Error = err.Error()
				}
				tools.Say(b.progress, "steady state of %s on %s: %v %s", s.name, r.Arm, r.Seconds, r.Error)
				b.results.Steady = append(b.results.Steady, r)
			}
		}
	}
	return nil
}

// steadyState starts the image, waits until all of it has come, and uses it: for each
// further record once more, in a container that starts then.
func (b *bench) steadyState(ctx context.Context, s subject, a arm, records []Steady) (err error) {
	if err := s.failed[a.name]; err != nil {
		return err
	}
	relay, err := link.NewWire(b.registry.Addr, link.Shape{Bits: 4e9})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, relay.Close()) }()
	h, err := b.newHost(ctx, a, relay.Addr(), "--background-fetch-delay", "100ms")
	if err != nil {
		return err
	}
	defer func() { err = b.end(ctx, h, err) }()
	ref := relay.Addr() + "/" + s.names[a.name]
	if err := h.node.Pull(ctx, ref, h.snapshotter); err != nil {
		return err
	}
	for i, r := range records {
		c, err := h.node.RunReady(ctx, ref, h.snapshotter, fmt.Sprintf("subject-%d", i), s.spec, s.env...)
		if err != nil {
			return err
		}
		if r.Arm == armLocal {
			if err := provesLocal(ctx, c); err != nil {
				return err
			}
		}
		pid, err := c.PID(ctx)
		if err != nil {
			return err
		}
		t, err := readTree(fmt.Sprintf("/proc/%d/root", pid), "usr")
		if err != nil {
			return err
		}
		if err := t.readAll(); err != nil {
			return err
		}
		if err := quiet(ctx, relay); err != nil {
			return err
		}
		for _, o := range uses() {
			if r.Seconds[o.name], err = b.measureUse(ctx, o, t); err != nil {
				return fmt.Errorf("%s: %w", o.name, err)
			}
		}
		if err := c.Stop(ctx); err != nil {
			return err
		}
		if i+1 < len(records) {
			if err := untilLocal(ctx, h.node); err != nil {
				return err
			}
		}
	}
	return nil
}

// untilLocal waits until our daemon has mounted the image from local files.
func untilLocal(ctx context.Context, n *node.Node) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		text, err := ask(ctx, n.StatusSocket(), "/metrics")
		if err != nil {
			return err
		}
		if counters(string(text))["images_local"] > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the image is all here, but not mounted from local files: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// provesLocal says whether a container reads files of this machine, with no daemon between.
func provesLocal(ctx context.Context, c *node.Container) error {
	m, err := c.RootMount(ctx)
	if err != nil {
		return err
	}
	if len(m.Lowers) != 1 || filepath.Base(m.Lowers[0]) != "local" || m.String() != "overlay on erofs" {
		return fmt.Errorf("the root is %s of %v, not local files", m, m.Lowers)
	}
	return nil
}

// measureUse is the median of some times that a use took. One that is not cold is
// made once before, for the cache.
func (b *bench) measureUse(ctx context.Context, o use, t *tree) (float64, error) {
	times := 5
	if o.cold {
		times = 3
	} else if err := o.use(t); err != nil {
		return 0, err
	}
	var all []float64
	for range times {
		if o.cold {
			if err := node.DropCaches(ctx, b.dir, b.files()...); err != nil {
				return 0, err
			}
		}
		began := time.Now()
		if err := o.use(t); err != nil {
			return 0, err
		}
		all = append(all, time.Since(began).Seconds())
	}
	return median(all), nil
}

// quiet waits until nothing has come over the wire for some seconds: what is fetched
// in the background has been.
func quiet(ctx context.Context, w *link.Wire) error {
	const still, limit = 6 * time.Second, 3 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last, since := w.Counts().All().Bytes, time.Now()
	for time.Since(since) < still {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the image has not all come within %v: %w", limit, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
		if now := w.Counts().All().Bytes; now != last {
			last, since = now, time.Now()
		}
	}
	return nil
}
