package main

import (
	"context"
	"errors"
	"fmt"
	golog "log"
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/pelletier/go-toml"
	"google.golang.org/grpc"
)

// serve runs the snapshotter until ctx ends, and then unmounts what it mounted. What
// the configuration does not say is as in containerd-stargz-grpc: the defaults of the
// peer's own structs, metadata in memory, metrics in the log at level info.
func serve(ctx context.Context, root, address, config string) (err error) {
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var c service.Config
	if err := toml.Unmarshal(text, &c); err != nil { // fills in what the structs' tags name as defaults
		return fmt.Errorf("configuration %s: %w", config, err)
	}
	if err := log.SetFormat(log.JSONFormat); err != nil {
		return err
	}
	golog.SetOutput(log.G(ctx).WriterLevel(log.DebugLevel)) // go-fuse is chatty
	if err := service.Supported(root); err != nil {
		return fmt.Errorf("the snapshotter cannot work in %s: %w", root, err)
	}
	s, err := service.NewStargzSnapshotterService(context.WithoutCancel(ctx), root, &c, service.WithFilesystemOptions(
		fs.WithMetricsLogLevel(log.InfoLevel), fs.WithMetadataStore(memory.NewReader)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(rpc, snapshotservice.FromSnapshotter(s))
	failed := make(chan error, 1)
	go func() { failed <- rpc.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		rpc.Stop()
		return nil
	}
}
