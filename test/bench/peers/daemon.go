package peers

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/apparate/apparate/test/node"
)

// daemon is a peer that is a process of its own.
type daemon struct {
	o Options
	p *node.Daemon
}

// startDaemon runs argv, with the directories path before those of PATH, and waits until it answers on the socket of o.
func startDaemon(ctx context.Context, name string, o Options, path []string, argv ...string) (Running, error) {
	p, err := node.StartDaemon(name, filepath.Join(o.Dir, "daemon.log"), path, argv...)
	if err != nil {
		return nil, err
	}
	d := &daemon{o: o, p: p}
	if err := p.Answers(ctx, o.socket()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *daemon) Socket() string { return d.o.socket() }
func (d *daemon) Root() string   { return d.o.root() }
func (d *daemon) PID() int       { return d.p.PID() }

// NotLazy compares what the daemon says it has with what the kernel has mounted: each
// committed snapshot is a layer, and each lazy one a FUSE mount below the root.
func (d *daemon) NotLazy(ctx context.Context) (count int, err error) {
	conn, err := grpc.NewClient("unix://"+d.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx = namespaces.WithNamespace(ctx, "default")
	err = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "peer").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			count++
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("listing snapshots: %w", err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Root()))
	if err != nil {
		return 0, err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.FSType, "fuse") {
			count--
		}
	}
	return count, nil
}

func (d *daemon) Close() error {
	const grace = 20 * time.Second
	return errors.Join(d.p.Stop(grace), node.UnmountBelow(d.o.Dir))
}

// inside is a peer that is a part of containerd.
type inside struct {
	root  string
	count func(root string) (int, error)
}

func (i *inside) Socket() string { return "" }
func (i *inside) Root() string   { return i.root }
func (i *inside) PID() int       { return 0 }

func (i *inside) NotLazy(context.Context) (int, error) {
	if i.count == nil {
		return 0, nil
	}
	return i.count(i.root)
}

func (i *inside) Close() error { return node.UnmountBelow(i.root) }
