package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/apparate/apparate/test/tools"
)

// Stargz is stargz-snapshotter. Its images are made as ctr-remote image optimize makes
// them: without a workload as they are (--no-optimize), with one with the files in
// front that a start opened.
type Stargz struct {
	// Workload says how an image is started; nil converts without optimising.
	Workload func(repository string) (Workload, error)

	paths    map[string]string
	progress io.Writer
}

// stargzConfig is the snapshotter's own configuration: all defaults, which are what
// its documentation advises (prefetch of what the image has in front, the rest in the
// background, every chunk verified), and a mirror over plain HTTP.
func stargzConfig(o Options) string {
	return fmt.Sprintf("[[resolver.host.%[1]q.mirrors]]\n  host = %[1]q\n  insecure = true\n", o.Registry)
}

// Name is "stargz", or "stargz-opt" with a workload.
func (s *Stargz) Name() string {
	if s.Workload != nil {
		return "stargz-opt"
	}
	return "stargz"
}

// Ensure builds the program, and the node's that images are converted with.
func (s *Stargz) Ensure(ctx context.Context, progress io.Writer) (err error) {
	s.progress = progress
	s.paths, err = tools.Ensure(ctx, progress, append(tools.All(), tools.Stargz)...)
	return err
}

// Version is the release of stargz-snapshotter.
func (s *Stargz) Version() string { return versionOf(s.paths[tools.Stargz]) }

// Convert makes the eStargz image with a containerd of its own.
func (s *Stargz) Convert(ctx context.Context, r Registry, repository, plainTag string) (string, error) {
	rec := recorder{s.Workload, s.progress, s.paths}
	tag, list, exists, err := rec.plan(ctx, r, repository, plainTag, s.Name(), s.Version())
	if err != nil || exists {
		return tag, err
	}
	return tag, s.convert(ctx, r, repository+":"+plainTag, repository+":"+tag, list)
}

func (s *Stargz) convert(ctx context.Context, r Registry, from, to, list string) (err error) {
	n, tmp, done, err := startNode(ctx, s.paths, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	began := time.Now()
	tools.Say(s.progress, "%s: converting %s", s.Name(), from)
	cmd := exec.CommandContext(ctx, s.paths[tools.Stargz], "convert", "--containerd", n.ContainerdSocket(),
		"--image", r.Addr+"/"+from, "--to", r.Addr+"/"+to, "--files", list)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("converting %s: %w: %s", from, err, bytes.TrimSpace(out))
	}
	tools.Say(s.progress, "%s: converted %s in %.1f s", s.Name(), from, time.Since(began).Seconds())
	return nil
}

// Setup says where the daemon is.
func (s *Stargz) Setup(o Options) (Setup, error) {
	return Setup{Snapshotter: "stargz", Config: proxyConfig("stargz", o), SnapshotDirs: []string{filepath.Join(o.root(), "snapshotter", "snapshots")}}, nil
}

// Start starts the daemon.
func (s *Stargz) Start(ctx context.Context, o Options) (Running, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	config := filepath.Join(o.Dir, "config.toml")
	if err := os.WriteFile(config, []byte(stargzConfig(o)), 0o644); err != nil {
		return nil, err
	}
	return startDaemon(ctx, s.Name(), o, nil, s.paths[tools.Stargz], "serve", "--root", o.root(), "--address", o.socket(), "--config", config)
}
