package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/apparate/apparate/snapshotter/source"
)

// commitLazy records the layer as a committed snapshot without content of its own, and
// returns the error by which containerd knows that it need not download. It is made and
// committed in one transaction, as each waits for the disk twice, and a pull for all of
// them one after the other.
func (s *Snapshotter) commitLazy(ctx context.Context, key, parent, target string, src source.Layer, opts []snapshots.Opt) error {
	labels, err := lazyLabels(src)
	if err != nil {
		return err
	}
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...)
		if err != nil {
			return err
		}
		dir := s.snapshotDir(snap.ID)
		if err = s.makeLazyDir(dir, snap.ParentIDs); err == nil {
			_, err = storage.CommitActive(ctx, key, target, snapshots.Usage{}, append(opts, snapshots.WithLabels(labels))...)
		}
		if err != nil {
			// Before the transaction ends: the next one may be given the same id.
			err = errors.Join(err, os.RemoveAll(dir))
		}
		return err
	})
	// Another pull of the same image may have committed the target.
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit lazy layer %s: %w", src.Digest, err)
	}
	s.cfg.Metrics.lazy()
	return fmt.Errorf("target snapshot %q: %w", target, errdefs.ErrAlreadyExists)
}

// snapshotDir is the directory of a snapshot, as containerd's overlay snapshotter has it.
func (s *Snapshotter) snapshotDir(id string) string {
	return filepath.Join(s.cfg.Root, "snapshots", id)
}

// makeLazyDir makes the directory of a lazy snapshot, in which there is nothing:
// containerd's overlay snapshotter gives the owner of the topmost parent's to what it
// makes upon it.
func (s *Snapshotter) makeLazyDir(dir string, parents []string) error {
	// An id comes again when its transaction did not end, as with a power cut.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	content := filepath.Join(dir, "fs")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(content, 0o755)); err != nil {
		return err
	}
	if len(parents) == 0 {
		return nil
	}
	info, err := os.Lstat(filepath.Join(s.snapshotDir(parents[0]), "fs"))
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("the owner of snapshot %s is not known", parents[0])
	}
	return os.Lchown(content, int(owner.Uid), int(owner.Gid))
}
