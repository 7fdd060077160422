// Command demo is the main job of the project from end to end, on real parts:
// it builds what is missing, runs a registry, converts images, and starts each
// one twice on a real containerd, over a link of limited bandwidth: eagerly, as a
// plain image on overlayfs, and lazily, as the accelerated image on our
// snapshotter. It prints the comparison and writes it to out/demo.json.
//
// Each start has a containerd with nothing pulled and a dropped page cache. Its
// time runs from the pull request to the program's first correct answer, asked
// for from outside every 2 ms. The demo fails when a lazy start was not lazy: its
// root must be an overlay on EROFS, with less than half of the image fetched, and
// it must have been ready sooner than the eager one.
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

// options are the demo's command line.
type options struct {
	images     []string
	mbits      int64
	rtt        time.Duration
	out        string
	imagesOnly bool
}

func main() {
	var o options
	names := flag.String("images", "nginx,numpy", "images to start, comma separated: nginx, numpy, golang or another one of test/images")
	flag.Int64Var(&o.mbits, "rate", 200, "bandwidth of the link to the registry, Mbit/s")
	flag.DurationVar(&o.rtt, "rtt", 5*time.Millisecond, "round trip of the link to the registry")
	flag.StringVar(&o.out, "out", filepath.Join("out", "demo.json"), "file of the results")
	flag.BoolVar(&o.imagesOnly, "images-only", false, "only assemble all images into the cache")
	flag.Parse()
	o.images = strings.Split(*names, ",")

	tools.Main("demo", func(ctx context.Context) error { return run(ctx, o) })
}

// run prepares, measures and reports. Whatever it starts it has stopped when it
// returns.
func run(ctx context.Context, o options) error {
	start := time.Now()
	progress := tools.Timed(os.Stderr)
	if o.imagesOnly {
		_, err := buildImages(ctx, progress, nil)
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("this starts containers and mounts file systems: run it as root")
	}
	if o.mbits <= 0 || o.rtt < 0 {
		return fmt.Errorf("a link of %d Mbit/s and %v cannot be: --rate must be positive, --rtt not negative", o.mbits, o.rtt)
	}
	p, err := prepare(ctx, progress, o.images)
	if err != nil {
		return err
	}
	result, err := measureAll(ctx, progress, o, p)
	if err != nil {
		return err
	}
	if err := result.write(o.out); err != nil {
		return err
	}
	table, err := result.table(o)
	if err != nil {
		return err
	}
	fmt.Print(table)
	fmt.Printf("\nThe same numbers are in %s. It took %.0f s in all.\n", o.out, time.Since(start).Seconds())
	return result.judge()
}
