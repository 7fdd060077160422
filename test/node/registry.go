package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Registry is a registry process that keeps its content in a directory.
type Registry struct {
	// Addr is its host:port on loopback, plain HTTP.
	Addr string
	// Dir is where its content and its log are.
	Dir string
	p   *process
}

// StartRegistry runs the registry program, which prints its address first, on
// the directory dir. The log is beside its content. Further arguments are the
// program's; "--address" among them replaces that of a free port. The caller
// closes it.
func StartRegistry(ctx context.Context, program, dir string, args ...string) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log := filepath.Join(dir, "registry.log")
	if err := os.WriteFile(log, nil, 0o644); err != nil { // the address must be the first line
		return nil, err
	}
	args = append([]string{program, "--root", filepath.Join(dir, "content"), "--address", "127.0.0.1:0"}, args...)
	p, err := startProcess("registry", log, nil, args...)
	if err != nil {
		return nil, err
	}
	r := &Registry{Dir: dir, p: p}
	for limit := time.Now().Add(30 * time.Second); ; {
		text, err := os.ReadFile(log)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", err, r.Close())
		}
		if line, _, ok := strings.Cut(string(text), "\n"); ok {
			r.Addr = line
			if err := p.answers(ctx, "tcp", r.Addr); err != nil {
				return nil, fmt.Errorf("%w (%w)", err, orExited(r.Close()))
			}
			return r, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("the registry ended at its start (%w): %s", orExited(p.err), p.tail())
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", ctx.Err(), orExited(r.Close()))
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(limit) {
			return nil, fmt.Errorf("the registry prints no address (%w): %s", orExited(r.Close()), p.tail())
		}
	}
}

// Close stops the registry; its content stays.
func (r *Registry) Close() error { return r.p.stop(5 * time.Second) }
