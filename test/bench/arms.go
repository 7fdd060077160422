package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/apparate/apparate/test/bench/peers"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// kind groups arms for the targets.
type kind int

const (
	local     kind = iota // what is on the node already
	eager                 // a default pull in full
	strong                // a pull in full, as fast as it gets
	lazy                  // a lazy peer without prefetch
	lazyAhead             // a lazy peer that fetches ahead what was recorded
	ours
)

// arm is one way to start an image.
type arm struct {
	name string
	// about says in a few words what it is, for the table's legend.
	about string
	kind  kind
	// warm arms start what is in memory.
	warm bool
	// peer is what the arm consists of, nil for overlayfs as it is and for ours.
	peer peers.Peer
	// profile is which one lies beside the image: one of those below, or none.
	profile string
	// again names the arm that this one repeats, to show the noise, or what a change
	// does: before says that it does so with the program of --against.
	again  string
	before bool
}

const (
	plainTag    = "v1"
	apparateTag = plainTag + "-apparate"
)

// Names of arms that tables refer to.
const (
	armWarm      = "warm"
	armLocalCold = "local-cold"
	armOverlay   = "overlayfs"
	armApparate  = "apparate"
	// armLocal is in the steady state alone: ours in a container that starts when all of the
	// image is here.
	armLocal     = "apparate-local"
	armAgain     = "apparate-again"
	armOwn       = "apparate-profile"
	armBefore    = "before"
	armBeforeOwn = "before-profile"
)

// Profiles of arms.
const (
	profileOwn   = "own"
	profileWrong = "wrong"
	profileStale = "stale"
	// profilePredicted was told from the image alone.
	profilePredicted = "predicted"
)

// arms are all ways, in the order of the tables. What the peers record is asked of
// workload.
func arms(workload func(repository string) (peers.Workload, error)) []arm {
	all := []arm{
		{name: armWarm, about: "unpacked on overlayfs, in the page cache", kind: local, warm: true},
		{name: armLocalCold, about: "unpacked on overlayfs, page cache dropped", kind: local},
		{name: armOverlay, about: "containerd's default pull", kind: eager},
	}
	kinds := map[string]kind{
		"overlayfs-strong": strong, "erofs-eager": strong, "soci-parallel": strong,
		"stargz": lazy, "soci": lazy, "stargz-opt": lazyAhead, "soci-prefetch": lazyAhead,
	}
	abouts := map[string]string{
		"overlayfs-strong": "10 downloads in ranges, 4 unpacks at once, igzip",
		"erofs-eager":      "containerd's EROFS snapshotter, pulled as overlayfs-strong",
		"soci-parallel":    "SOCI's parallel pull of whole layers",
		"stargz":           "stargz-snapshotter, eStargz as built",
		"stargz-opt":       "stargz-snapshotter, eStargz optimised by its recorder",
		"soci":             "SOCI v2, lazy",
		"soci-prefetch":    "SOCI v2, lazy, with prefetch of recorded files",
	}
	for _, k := range []kind{strong, lazy, lazyAhead} {
		for _, p := range peers.All(workload) {
			if kinds[p.Name()] == k {
				all = append(all, arm{name: p.Name(), about: abouts[p.Name()], kind: k, peer: p})
			}
		}
	}
	return append(all,
		arm{name: armApparate, about: "ours without a profile", kind: ours},
		arm{name: armAgain, about: "the same once more, for the noise", kind: ours, again: armApparate},
		arm{name: "apparate-predicted", about: "ours with a profile that is told from the image alone", kind: ours, profile: profilePredicted},
		arm{name: armOwn, about: "ours with the image's profile, recorded on another run", kind: ours, profile: profileOwn},
		arm{name: "apparate-wrong", about: "ours with the profile of another image", kind: ours, profile: profileWrong},
		arm{name: "apparate-stale", about: "ours with a profile of which half is of another image", kind: ours, profile: profileStale},
		arm{name: armBefore, about: "another build of ours, without a profile", kind: ours, again: armApparate, before: true},
		arm{name: armBeforeOwn, about: "another build of ours, with the image's profile", kind: ours, again: armOwn, before: true},
	)
}

// armsOnly are the arms for tables: the peers among them cannot record.
func armsOnly() []arm {
	return arms(func(repository string) (peers.Workload, error) {
		return peers.Workload{}, fmt.Errorf("no workload of %s is known", repository)
	})
}

// programs are those that the nodes run.
func programs() []string { return tools.All() }

// workload says how the peers' recorders start an image.
func (b *bench) workload(repository string) (peers.Workload, error) {
	for _, s := range b.subjects {
		if s.spec.Repository != repository {
			continue
		}
		port, err := node.FreePort()
		if err != nil {
			return peers.Workload{}, err
		}
		return peers.Workload{
			Name: s.operation, Env: append([]string{fmt.Sprintf("%s=%d", images.PortVariable, port)}, s.env...),
			Ready: func(ctx context.Context, printed func() string) error {
				if s.spec.Line == "" {
					return node.WaitPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", port, s.spec.Path), s.spec.Body)
				}
				return waitPrinted(ctx, printed, s.spec.Line)
			},
		}, nil
	}
	return peers.Workload{}, fmt.Errorf("no image has the repository %s", repository)
}

// waitPrinted waits until a whole line is among what was printed.
func waitPrinted(ctx context.Context, printed func() string, line string) error {
	for {
		if strings.Contains("\n"+printed(), "\n"+line+"\n") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%q was not printed: %w", line, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
