// Command bench measures how soon containers start, against the physical limit and
// against other ways to start them, on real parts: containerd, runc, a registry
// behind a shaped network, the snapshotters as processes.
//
// Every start has a node with nothing on it and a dropped page cache, and proves
// that it was what it says: by its root mount, by the layers that were not pulled in
// full, by the bytes that had come. The order is random. No time is asserted: what
// was measured goes to out/bench.json, the tables to out/bench.md, the plots beside
// them; --readme puts tables and plots into the README. Failures count and are shown.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/apparate/apparate/test/tools"
)

// options are the command line.
type options struct {
	tier                    string
	images, networks, arms  string
	rounds, bursts, steady  int
	limit                   time.Duration
	out, state, from, reads string
	against                 string
}

func main() {
	var o options
	flag.StringVar(&o.tier, "tier", "smoke", "how much is measured: smoke or core")
	flag.StringVar(&o.images, "images", "", "images, comma separated; all of the tier by default")
	flag.StringVar(&o.networks, "networks", "", "networks, comma separated: "+strings.Join(names(networks(), networkName), ", ")+"; those of the tier by default")
	flag.StringVar(&o.arms, "arms", "", "arms, comma separated; all by default")
	flag.IntVar(&o.rounds, "runs", -1, "how often each start is measured at most")
	flag.IntVar(&o.bursts, "bursts", -1, "how often the scenarios of many starts at once are measured")
	flag.IntVar(&o.steady, "steady", -1, "how often the steady state is measured")
	flag.DurationVar(&o.limit, "limit", 0, "how long it may take at most, but for one round, which is always made; by default the tier's")
	flag.StringVar(&o.out, "out", "out", "directory of bench.json, bench.md and the plots")
	flag.StringVar(&o.state, "state", "", "directory that keeps the registry between calls; by default a new one, which is removed")
	flag.StringVar(&o.from, "from", "", "measure nothing: make tables and plots of these bench.json, comma separated; what a later one has of an image on a network replaces what an earlier one has")
	flag.StringVar(&o.against, "against", "", "another build of the apparate program: its starts are measured in the same rounds, to see what a change does")
	flag.StringVar(&o.reads, "readme", "", "README whose tables between the bench markers are replaced")
	flag.Parse()

	tools.Main("bench", func(ctx context.Context) error { return run(ctx, o) })
}

// run measures, or reads what was measured, and reports.
func run(ctx context.Context, o options) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	var r *Results
	var err error
	if o.from != "" {
		if r, err = readAll(o.from); err != nil {
			return err
		}
	} else {
		if os.Geteuid() != 0 {
			return errors.New("this starts containers, mounts file systems and shapes networks: run it as root")
		}
		p, err := newPlan(o)
		if err != nil {
			return err
		}
		var measureErr error
		if r, measureErr = measure(ctx, tools.Timed(os.Stderr), o, p); r == nil {
			return measureErr
		}
		// What was measured before an interrupt or a failure is kept.
		if err := errors.Join(measureErr, r.write(filepath.Join(o.out, "bench.json"))); err != nil {
			return err
		}
	}
	return report(r, o)
}

// report writes tables and plots.
func report(r *Results, o options) error {
	text := markdown(r)
	if err := writeFile(filepath.Join(o.out, "bench.md"), []byte(text)); err != nil {
		return err
	}
	fmt.Print(text)
	if err := writePlots(r, o.out); err != nil {
		return err
	}
	if o.reads == "" {
		return nil
	}
	return errors.Join(writePlots(r, filepath.Join(filepath.Dir(o.reads), plotsDir)), updateReadme(o.reads, summary(r)))
}
