package host

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// well waits until containerd works, with our snapshotter or without, and the node
// with it, and stays so for a while.
func (m *Machine) well(ctx context.Context, with bool) error {
	const poll = 250 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, m.Wait+m.Settle)
	defer cancel()
	began, since := time.Now(), time.Time{}
	for {
		err := m.works(ctx, with)
		switch {
		case err != nil && time.Since(began) > m.Wait:
			return err
		case err != nil:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= m.Settle:
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("not well within %v: %w", m.Wait, ctx.Err()))
		case <-time.After(poll):
		}
	}
}

// works asks containerd and the node once.
func (m *Machine) works(ctx context.Context, with bool) error {
	const limit = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, err := ContainerdVersion(ctx, m.Socket); err != nil {
		return err
	}
	if with {
		if err := tryOut(ctx, m.Socket); err != nil {
			return err
		}
	}
	if m.Healthy == nil {
		return nil
	}
	return m.Healthy(ctx)
}

// tryOut has containerd make and remove a snapshot of ours.
func tryOut(ctx context.Context, socket string) (err error) {
	c, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
	key := "apparate-check-" + rand.Text()
	s := snapshotsapi.NewSnapshotsClient(c)
	_, err = s.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: Name, Key: key})
	if err == nil {
		_, err = s.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: Name, Key: key})
	}
	if err != nil {
		return fmt.Errorf("a snapshot by way of containerd: %w", err)
	}
	return nil
}

// dropUnusable has images pulled again that the default snapshotter could not use:
// containerd has a record of them and not all of their layers, and kubelet pulls
// nothing of which there is a record.
func (m *Machine) dropUnusable(ctx context.Context, snapshotter string) (err error) {
	store, err := OpenStore(m.Socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	images, err := store.Unusable(ctx, snapshotter)
	if err != nil || len(images) == 0 {
		return err
	}
	m.Logger.Info("images are pulled again when they are needed, since not all of their layers are here", "images", len(images), "snapshotter", snapshotter)
	return store.Drop(ctx, images)
}
