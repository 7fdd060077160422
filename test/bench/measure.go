package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apparate/apparate/test/link"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// bench is everything that the measurements share.
type bench struct {
	plan
	progress io.Writer
	tools    map[string]string
	apparate string // our own program
	against  string // another build of it, where there is one
	dir      string // of all state
	registry *node.Registry
	wires    []*link.Wire     // of plan.networks
	local    map[string]*host // by image
	nodes    int              // counted up for the names of their directories
	results  *Results
}

// measure does what p says. The results are those until the error, nil where there
// are none.
func measure(ctx context.Context, progress io.Writer, o options, p plan) (r *Results, err error) {
	b := &bench{plan: p, progress: progress, against: o.against, local: map[string]*host{}, results: &Results{Tier: o.tier, Began: time.Now(), Peers: map[string]string{}}}
	if b.arms, err = choose("arm", strings.Join(names(p.arms, armName), ","), arms(b.workload), armName); err != nil {
		return nil, err
	}
	// The wires' addresses are not for a proxy.
	if err := os.Setenv("NO_PROXY", os.Getenv("NO_PROXY")+",127.0.0.1,"+link.Network); err != nil {
		return nil, err
	}
	if err := b.buildPrograms(ctx); err != nil {
		return nil, err
	}
	b.dir = o.state
	if b.dir == "" {
		cache, err := tools.CacheDir()
		if err != nil {
			return nil, err
		}
		if err := sweep(cache); err != nil {
			return nil, err
		}
		// Not in /tmp, which may be memory: this is the disk that images are unpacked to.
		if b.dir, err = os.MkdirTemp(cache, fmt.Sprintf("bench-%d-", os.Getpid())); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	} else {
		lock, err := lockState(b.dir)
		if err != nil {
			return nil, err
		}
		defer func() { _ = lock.Close() }() // which unlocks it
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return nil, err
	}
	b.registry, err = node.StartRegistry(ctx, b.tools[tools.Registry], filepath.Join(b.dir, "registry"), "--direct")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.registry.Close()) }()
	defer func() { err = errors.Join(err, b.closeLocal()) }()
	if err := b.buildWires(ctx); err != nil {
		return nil, errors.Join(err, b.closeWires())
	}
	defer func() { err = errors.Join(err, b.closeWires()) }()
	if b.results.Machine, err = describeMachine(ctx, b); err != nil {
		return nil, err
	}
	if err := b.prepareImages(ctx); err != nil {
		return nil, err
	}
	// The scenarios come first: they are short, and what is cut when time is up are rounds.
	for _, part := range []func(context.Context) error{b.runSteady, b.runBursts, b.runAll} {
		if err = part(ctx); err != nil {
			break
		}
	}
	b.results.Took = time.Since(b.results.Began).Seconds()
	return b.results, err
}

// lockState keeps other benches out of a directory that is kept: their nodes would have the
// names of ours. The lock ends with the file, and with the process.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another bench is using it: wait for its end, or name another directory")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--state %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// sweep removes what benchmarks left that were killed.
func sweep(cache string) error {
	dirs, err := filepath.Glob(filepath.Join(cache, "bench-*-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "bench-%d-", &pid); err != nil {
			continue // of someone else
		}
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			errs = append(errs, node.Sweep(dir))
		}
	}
	return errors.Join(errs...)
}

// buildWires makes the networks and proves that they are what they claim.
func (b *bench) buildWires(ctx context.Context) error {
	for _, n := range b.networks {
		w, err := link.NewWire(b.registry.Addr, n.Shape)
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		b.wires = append(b.wires, w)
		if n.Measured, err = w.Tune(ctx); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		tools.Say(b.progress, "network %s: %.0f Mbit/s in bursts of %v, round trip %v", n.Name, n.Measured.Bits/1e6, n.Measured.Burst, n.Measured.RTT.Round(time.Microsecond))
		b.results.Networks = append(b.results.Networks, n)
	}
	return nil
}

func (b *bench) closeWires() error {
	var errs []error
	for _, w := range b.wires {
		errs = append(errs, w.Close())
	}
	return errors.Join(errs...)
}

// runAll measures round by round, as many as the time allows.
func (b *bench) runAll(ctx context.Context) error {
	began := time.Now()
	for round := 1; round <= b.rounds; round++ {
		last := time.Since(began)
		if took := time.Since(b.results.Began); round > 1 && took+last > b.limit {
			b.left("rounds %d to %d: %v had been used of %v, and a round takes %v",
				round, b.rounds, took.Round(time.Second), b.limit, last.Round(time.Second))
			break
		}
		began = time.Now()
		jobs := b.round(round)
		for i, j := range jobs {
			run := Run{Image: b.subjects[j.subject].name, Arm: j.arm.name, Round: round}
			if j.network >= 0 {
				run.Network = b.networks[j.network].Name
			}
			err := b.start(ctx, b.subjects[j.subject], j, &run)
			if ctx.Err() != nil {
				return ctx.Err() // not the arm's fault
			}
			outcome := fmt.Sprintf("%.3f s, %.1f MB in %d requests, root %s", run.Seconds, mb(run.Traffic.All().Bytes), run.Traffic.All().Requests, run.Root)
			if err != nil {
				run.Error = err.Error()
				outcome = "FAILED: " + run.Error
			}
			tools.Say(b.progress, "round %d, %d of %d: %s %s %s: %s", round, i+1, len(jobs), run.Image, run.Arm, run.Network, outcome)
			b.results.Runs = append(b.results.Runs, run)
		}
	}
	return nil
}

// left notes what was not measured.
func (b *bench) left(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	tools.Say(b.progress, "left out: %s", text)
	b.results.Left = append(b.results.Left, text)
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

// newDir is a directory for one node.
func (b *bench) newDir() string {
	b.nodes++
	return filepath.Join(b.dir, fmt.Sprintf("node-%d", b.nodes))
}

// files are the programs that every start runs.
func (b *bench) files() []string {
	all := []string{b.apparate}
	for _, name := range programs() {
		all = append(all, b.tools[name])
	}
	return all
}
