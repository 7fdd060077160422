package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/apparate/apparate/test/node"
)

// startLimit is when a start is given up, from the request on.
const startLimit = 3 * time.Minute

// start measures one start into run, which has what was measured until an error.
func (b *bench) start(ctx context.Context, s subject, j job, run *Run) error {
	if err := s.failed[j.arm.name]; err != nil {
		return err
	}
	if j.arm.kind == local {
		return b.startLocal(ctx, s, j.arm, run)
	}
	return b.startRemote(ctx, s, j, run)
}

// startRemote starts an image on a node that has nothing of it.
func (b *bench) startRemote(ctx context.Context, s subject, j job, run *Run) (err error) {
	wire := b.wires[j.network]
	h, err := b.newHost(ctx, j.arm, wire.Addr())
	if err != nil {
		return err
	}
	defer func() { err = b.end(ctx, h, err) }()
	if err := b.dropCaches(ctx, h, s.names[j.arm.name]); err != nil {
		return err
	}
	u, err := h.usage()
	if err != nil {
		return err
	}
	run.IdleRSS = u.now
	before := wire.Counts()
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	ref := wire.Addr() + "/" + s.names[j.arm.name]
	began := time.Now()
	run.Began = began
	if err := h.node.Pull(limited, ref, h.snapshotter); err != nil {
		return err
	}
	run.Pull = time.Since(began).Seconds()
	c, err := h.node.RunReady(limited, ref, h.snapshotter, "subject", s.spec, s.env...)
	run.Seconds = time.Since(began).Seconds()
	run.Traffic = wire.Counts().Sub(before)
	if err != nil {
		return err
	}
	now, err := h.usage()
	if err != nil {
		return err
	}
	run.CPU.Daemon, run.CPU.Containerd = now.daemon-u.daemon, now.containerd-u.containerd
	run.CPU.Machine, run.CPU.Stolen = now.worked-u.worked, now.stolen-u.stolen
	run.PeakRSS = now.peak
	if err := h.prove(ctx, c, j.arm, run); err != nil {
		return err
	}
	if j.arm.kind == ours {
		if err := account(ctx, h.node, run); err != nil {
			return err
		}
	}
	return c.Stop(ctx)
}

// prove looks at what the container's root really is, and for layers that were
// pulled in full. A lazy peer may have some: SOCI does not bother with small ones.
func (h *host) prove(ctx context.Context, c *node.Container, a arm, run *Run) error {
	m, err := c.RootMount(ctx)
	if err != nil {
		return err
	}
	run.Root = m.String()
	if m.Type != "overlay" || len(m.Lowers) == 0 {
		return fmt.Errorf("the root is %s, not an overlay", run.Root)
	}
	mounted := 0
	for _, t := range m.LowerTypes {
		if t == "erofs" || strings.HasPrefix(t, "fuse") {
			mounted++
		}
	}
	if h.peer != nil {
		if run.NotLazy, err = h.peer.NotLazy(ctx); err != nil {
			return err
		}
	}
	switch a.kind {
	case lazy, lazyAhead:
		if mounted == 0 {
			return fmt.Errorf("the root is %s: no layer is lazy", run.Root)
		}
	case ours:
		if run.NotLazy = len(m.LowerTypes) - mounted; run.NotLazy > 0 {
			return fmt.Errorf("the root is %s: %d layers are not lazy", run.Root, run.NotLazy)
		}
	case local, eager:
		if mounted > 0 {
			return fmt.Errorf("the root is %s: %d layers are lazy", run.Root, mounted)
		}
	case strong:
		if run.NotLazy > 0 {
			return fmt.Errorf("the root is %s: %d layers are not what they should be", run.Root, run.NotLazy)
		}
	}
	return nil
}

// account asks our daemon what it did.
func account(ctx context.Context, n *node.Node, run *Run) error {
	starts, err := ask(ctx, n.StatusSocket(), "/starts")
	switch {
	case errors.Is(err, errNotServed):
	case err != nil:
		return err
	case !json.Valid(starts):
		return fmt.Errorf("/starts is not JSON: %.100q", starts)
	default:
		run.Starts = starts
	}
	text, err := ask(ctx, n.StatusSocket(), "/metrics")
	if err != nil {
		return err
	}
	run.Metrics = counters(string(text))
	return nil
}
