package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir is where [NewSupervised] keeps what it knows: in memory, as a process
// does not outlive a boot either.
const DefaultDir = "/run/apparate"

// supervised runs services as processes in cgroups of their own. What it knows of the
// service NAME is in the files NAME.service, NAME.process and NAME.exit of its
// directory, for whatever process asks next.
type supervised struct{ dir string }

var _ Manager = (*supervised)(nil)

// NewSupervised returns the manager for hosts without a service manager that we know:
// a service is a process in a cgroup and a session of its own, which outlives whoever
// started it. It is started again by [Manager.Keep] alone, so somebody has to call
// that, and nothing is started at boot. It keeps no descriptors.
//
// Its state is in dir, which is made when missing; empty means DefaultDir.
func NewSupervised(dir string) (Manager, error) {
	if dir == "" {
		dir = DefaultDir
	}
	if err := onHost(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	return &supervised{dir: dir}, nil
}

// running is what is known of a process of a service.
type running struct {
	process
	Since time.Time `json:"since"`
	// Definition is a digest of the Daemon that it was started as.
	Definition string `json:"definition"`
	Ready      bool   `json:"ready"`
	// Stopped is true once Stop was called.
	Stopped bool `json:"stopped"`
}

// ended is how a process ended. It is in a file of its own: whoever was its parent
// writes it, at any time.
type ended struct {
	process
	How string `json:"how"`
}

// Name is that of the manager.
func (*supervised) Name() string { return "supervised" }

// KeepsDescriptors is false.
func (*supervised) KeepsDescriptors() bool { return false }

func (s *supervised) file(name, kind string) string { return filepath.Join(s.dir, name+"."+kind) }

// locked runs f while no other process changes anything in the directory.
func (s *supervised) locked(ctx context.Context, f func() error) error {
	unlock, err := lockDir(ctx, s.dir)
	if err != nil {
		return fmt.Errorf("locking %s: %w", s.dir, err)
	}
	return errors.Join(f(), unlock())
}

// Install remembers the daemon.
func (s *supervised) Install(ctx context.Context, d Daemon) (changed bool, err error) {
	if err := d.check(); err != nil {
		return false, err
	}
	err = s.locked(ctx, func() error {
		var old Daemon
		ok, err := readJSON(s.file(d.Name, "service"), &old)
		if err == nil && ok && definition(old) == definition(d) {
			return nil
		}
		changed = true // also what cannot be read
		return writeJSON(s.file(d.Name, "service"), d)
	})
	return changed, err
}

// definition is a digest of all that a daemon is.
func definition(d Daemon) string {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// installed reads the daemon.
func (s *supervised) installed(name string) (d Daemon, err error) {
	ok, err := readJSON(s.file(name, "service"), &d)
	if err == nil && !ok {
		err = fmt.Errorf("%s: %w", name, ErrNotInstalled)
	}
	return d, err
}

// process reads the service's process, which need not run any more.
func (s *supervised) process(name string) (r running, err error) {
	_, err = readJSON(s.file(name, "process"), &r)
	return r, err
}

// Start starts the daemon.
func (s *supervised) Start(ctx context.Context, name string) error {
	return s.start(ctx, name, nil)
}

// start starts the daemon, after first has been done.
func (s *supervised) start(ctx context.Context, name string, first func() error) error {
	var d Daemon
	var started bool
	err := s.locked(ctx, func() (err error) {
		if first != nil {
			if err := first(); err != nil {
				return err
			}
		}
		if d, err = s.installed(name); err != nil {
			return err
		}
		r, err := s.process(name)
		if err != nil {
			return err
		}
		if r.alive() && r.Ready {
			return nil
		}
		// One that was never heard to be ready lost whoever listened to it.
		if err := s.end(ctx, name, d.StopTimeout); err != nil {
			return err
		}
		started = true
		return s.launch(ctx, d)
	})
	if err != nil || !started || len(d.PostStart) == 0 {
		return err
	}
	s.postStart(ctx, d)
	return nil
}

// Keep starts the daemon again and again.
func (s *supervised) Keep(ctx context.Context, name string) error {
	const first, most = time.Second, 30 * time.Second
	delay := first
	for ctx.Err() == nil {
		r, err := s.process(name)
		switch {
		case err != nil:
		case r.alive():
			_ = r.wait(ctx) // whatever it says, the process is looked at again
			continue
		case !r.Stopped:
			if err = s.Start(ctx, name); errors.Is(err, ErrNotInstalled) {
				err = nil // it may be again, some day
			}
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			slog.Warn("a service does not start", "service", name, "error", err, "again after", delay)
		}
		_ = sleep(ctx, delay) // the loop asks ctx
		if delay = min(2*delay, most); err == nil {
			delay = first
		}
	}
	return nil
}

// Reload sends SIGHUP to the main process.
func (s *supervised) Reload(_ context.Context, name string) error {
	if _, err := s.installed(name); err != nil {
		return err
	}
	r, err := s.process(name)
	if err != nil {
		return err
	}
	if err := r.signal(unix.SIGHUP); err != nil {
		return fmt.Errorf("SIGHUP to %s: %w", name, err)
	}
	return nil
}

// Restart ends the daemon and starts it.
func (s *supervised) Restart(ctx context.Context, name string) error {
	return s.start(ctx, name, func() error {
		d, err := s.installed(name)
		if err != nil {
			return err
		}
		return s.end(ctx, name, d.StopTimeout)
	})
}

// Stop ends the daemon.
func (s *supervised) Stop(ctx context.Context, name string) error {
	return s.locked(ctx, func() error { return s.stop(ctx, name) })
}

func (s *supervised) stop(ctx context.Context, name string) error {
	d, err := s.installed(name)
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return err
	}
	r, err := s.process(name)
	if err != nil {
		return err
	}
	if r.PID == 0 {
		return nil
	}
	// First, so that Keep does not start it again.
	r.Stopped = true
	if err := writeJSON(s.file(name, "process"), r); err != nil {
		return err
	}
	return s.end(ctx, name, d.StopTimeout)
}

// Remove stops the daemon and forgets it.
func (s *supervised) Remove(ctx context.Context, name string) error {
	return s.locked(ctx, func() error {
		r, err := s.process(name)
		if err != nil {
			return err
		}
		if r.PID == os.Getpid() {
			g, err := groupOf(name)
			if err == nil {
				err = g.remove(ctx)
			}
			if err != nil {
				return err
			}
		} else if err := s.stop(ctx, name); err != nil {
			return err
		}
		for _, kind := range []string{"service", "process", "exit", "notify"} {
			if err := os.Remove(s.file(name, kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// Status reads what is known, and looks whether the process runs.
func (s *supervised) Status(_ context.Context, name string) (st Status, err error) {
	d, err := s.installed(name)
	if st.Installed = err == nil; err != nil && !errors.Is(err, ErrNotInstalled) {
		return st, err
	}
	r, err := s.process(name)
	if err != nil {
		return st, err
	}
	var e ended
	if _, err := readJSON(s.file(name, "exit"), &e); err != nil {
		return st, err
	}
	if r.alive() {
		st.Running, st.PID, st.Since, st.Ready = true, r.PID, r.Since, r.Ready
		st.Outdated = st.Installed && r.Definition != definition(d)
		st.LastExit = e.How
	} else if e.process == r.process {
		st.LastExit = e.How
	}
	return st, nil
}

// RunDetached starts a process that is nobody's.
func (s *supervised) RunDetached(ctx context.Context, d Daemon) error {
	if err := d.check(); err != nil {
		return err
	}
	return s.locked(ctx, func() error {
		r, err := s.process(d.Name)
		if err != nil || r.alive() {
			return err
		}
		if err := s.end(ctx, d.Name, d.StopTimeout); err != nil {
			return err
		}
		if r, _, err = s.run(d, nil, 0); err != nil {
			return err
		}
		r.Ready = true
		return writeJSON(s.file(d.Name, "process"), r)
	})
}
