package peers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// startNode starts a node that images are converted with, in a directory of its own
// in the cache: not in /tmp, which may be memory. The program that converts has its
// temporary files, whole layers, in tmp. done ends and removes all.
func startNode(ctx context.Context, paths map[string]string, r Registry) (n *node.Node, tmp string, done func() error, err error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, "", nil, err
	}
	dir, err := os.MkdirTemp(cache, "convert-")
	if err != nil {
		return nil, "", nil, err
	}
	n, err = node.Start(ctx, node.Options{Dir: filepath.Join(dir, "node"), Tools: paths, Registries: []string{r.Addr}})
	if err != nil {
		return nil, "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return n, dir, func() error { return errors.Join(n.Close(), os.RemoveAll(dir)) }, nil
}

// recorder is how a peer learns what a start of an image opens.
type recorder struct {
	workload func(repository string) (Workload, error) // nil: it does not want to know
	progress io.Writer
	paths    map[string]string
}

// plan returns the tag for a peer's form of an image and whether it exists; if not, and
// the peer wants it, also the list of files that a start opens.
func (c recorder) plan(ctx context.Context, r Registry, repository, plainTag, peer, version string) (tag, list string, exists bool, err error) {
	var w Workload
	if c.workload != nil {
		if w, err = c.workload(repository); err != nil {
			return "", "", false, err
		}
	}
	tag, exists, err = tagged(ctx, r, repository, plainTag, peer, version, w.Name)
	if err != nil || exists || c.workload == nil {
		return tag, "", exists, err
	}
	list, err = opened(ctx, c.progress, c.paths, r, repository, plainTag, w)
	return tag, list, false, err
}

// opened returns a list of the files that a start of the image opens, one a line, in
// order of first use. It is recorded once and kept in the cache, by the image's digest
// and the workload's name.
func opened(ctx context.Context, progress io.Writer, paths map[string]string, r Registry, repository, tag string, w Workload) (string, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return "", err
	}
	ref, err := reference(r, repository, tag)
	if err != nil {
		return "", err
	}
	d, err := remote.Head(ref, remote.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", ref, err)
	}
	hash := sha256.Sum256(fmt.Appendf(nil, "%s %q", d.Digest, w.Name))
	dir := filepath.Join(cache, "opened", fmt.Sprintf("%s-%x", filepath.Base(repository), hash[:6]))
	list := filepath.Join(dir, "files")
	return list, tools.Make(dir, func(tmp string) (err error) {
		n, _, done, err := startNode(ctx, paths, r)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done()) }()
		tools.Say(progress, "recording a start of %s:%s", repository, tag)
		err = record(ctx, paths[tools.Stargz], w, []string{
			"record", "--containerd", n.ContainerdSocket(), "--image", ref.String(), "--out", filepath.Join(tmp, "files"),
			"--runc-binary", paths[tools.Runc], "--runc-root", filepath.Join(tmp, "runc"),
		})
		if err != nil {
			return fmt.Errorf("recording a start of %s: %w", ref, err)
		}
		return os.RemoveAll(filepath.Join(tmp, "runc"))
	})
}

// record runs the recorder until the program is ready and ctr-remote's default time
// is over, whichever is later: what a program opens shortly after its first answer
// is recorded as well.
func record(ctx context.Context, program string, w Workload, args []string) error {
	const period = 10 * time.Second
	for _, e := range w.Env {
		args = append(args, "--env", e)
	}
	if len(w.Args) > 0 {
		args = append(append(args, "--"), w.Args...)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var out, messages printed
	cmd.Stdout, cmd.Stderr = &out, &messages
	end, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ready := make(chan error, 1)
	go func() {
		var err error
		if w.Ready != nil {
			err = w.Ready(ctx, out.String)
		}
		ready <- err
	}()
	began := time.Now()
	select {
	case err = <-done: // before the program was ready
		return fmt.Errorf("the program ended early (%w): %s %s", orEnded(err), out.String(), messages.String())
	case err = <-ready:
	}
	if err == nil {
		select {
		case <-time.After(period - time.Since(began)):
		case <-ctx.Done():
		}
	}
	if err := errors.Join(err, end.Close(), <-done); err != nil {
		return fmt.Errorf("%w: %s %s", err, out.String(), messages.String())
	}
	return nil
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// printed keeps what a program prints.
type printed struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write keeps the first MiB.
func (p *printed) Write(b []byte) (int, error) {
	const most = 1 << 20
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text.Len() < most {
		p.text.Write(b)
	}
	return len(b), nil
}

// String returns what was printed so far.
func (p *printed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}
