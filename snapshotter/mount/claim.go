package mount

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Claim takes root for this process alone, until the Closer is closed, and takes
// away the mounts of an earlier one that was killed: those below root, and
// images of root that are mounted elsewhere. Nobody answers for them any more.
// Hold does the same for the daemon; Claim is for a process that serves itself.
func Claim(root string) (io.Closer, error) {
	lock, err := acquire(root)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(detachOf(root), sweep(root, slog.New(slog.DiscardHandler))); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// detachOf takes every EROFS mount away whose metadata image lies below root.
func detachOf(root string) error {
	root, err := filepath.Abs(root) // as it was named when it was mounted
	if err != nil {
		return err
	}
	list, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "erofs" || !strings.HasPrefix(m.Source, root+string(filepath.Separator)), false
	})
	if err != nil {
		return err
	}
	var failed []error
	for _, m := range list {
		failed = append(failed, Detach(m.Mountpoint))
	}
	return errors.Join(failed...)
}
