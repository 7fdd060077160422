package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/apparate/apparate/test/tools"
)

// lockName is the file that the owner of a cluster holds locked as long as it lives.
const lockName = "owner"

// Sweep removes what clusters in dir left whose owner is gone: their processes ended
// with it, their directories and cgroups did not.
func Sweep(dir string, progress io.Writer) error {
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { _ = unlock.Close() }() // nothing was written
	all, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range all {
		if !e.IsDir() {
			continue
		}
		owner, err := own(filepath.Join(dir, e.Name()))
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // it lives
		}
		if err != nil {
			return err
		}
		tools.Say(progress, "cluster: removing %s, whose owner is gone", e.Name())
		errs = append(errs, removeGroups(e.Name()), os.RemoveAll(filepath.Join(dir, e.Name())), owner.Close())
	}
	return errors.Join(errs...)
}

// Owner returns the process id of the owner of the cluster name in dir, 0 if there is
// none.
func Owner(dir, name string) int {
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return 0
	}
	if f, err := own(path); err == nil {
		_ = f.Close() // nobody's
		return 0
	}
	var pid int
	b, err := os.ReadFile(filepath.Join(path, lockName))
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return 0
	}
	return pid
}

// claim makes the cluster's directory and becomes its owner.
func (c *Cluster) claim() error {
	unlock, err := lockDir(c.o.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = unlock.Close() }() // nothing was written
	c.Name = c.o.Name
	switch {
	case c.Name == "":
		if c.Dir, err = os.MkdirTemp(c.o.Dir, "test-"); err != nil {
			return err
		}
		c.Name = filepath.Base(c.Dir)
	case strings.ContainsAny(c.Name, "/ \n") || strings.HasPrefix(c.Name, "."):
		return fmt.Errorf("name %q: a cluster's name is that of a directory", c.Name)
	default:
		c.Dir = filepath.Join(c.o.Dir, c.Name)
		if err := os.Mkdir(c.Dir, 0o700); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("a cluster called %s runs already (process %d)", c.Name, Owner(c.o.Dir, c.Name))
		} else if err != nil {
			return err
		}
	}
	if c.lock, err = own(c.Dir); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c.lock, os.Getpid()); err != nil {
		return err
	}
	for _, d := range []string{"bin", "log", "nodes"} {
		if err := os.Mkdir(filepath.Join(c.Dir, d), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// lockDir locks the directory of all clusters.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return flock(filepath.Join(dir, ".lock"), syscall.LOCK_EX)
}

// own becomes the owner of a cluster's directory; the error is EWOULDBLOCK where
// another process is.
func own(dir string) (*os.File, error) {
	return flock(filepath.Join(dir, lockName), syscall.LOCK_EX|syscall.LOCK_NB)
}

// flock opens a file and locks it until it is closed.
func flock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, f.Close())
	}
	return f, nil
}
