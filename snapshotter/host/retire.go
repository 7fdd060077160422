package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/apparate/apparate/snapshotter/dropin"
	"github.com/apparate/apparate/snapshotter/mount"
	"github.com/apparate/apparate/snapshotter/service"
)

// Installed says whether something of an installation is on this machine.
func (m *Machine) Installed() (bool, error) {
	s, err := m.load()
	return s.Root != "", err
}

// StartRetiring starts a process of the host that outlives this one and calls Retire.
func (m *Machine) StartRetiring(ctx context.Context) error {
	s, err := m.load()
	if err != nil {
		return err
	}
	if s.Root == "" { // nothing was ever installed
		return m.removeFiles(ctx)
	}
	argv := []string{m.Program(), "node", "retire", "--host-dir", m.Dir}
	return m.manager.RunDetached(ctx, service.Daemon{
		Name: retireName, Description: "Apparate leaves this machine", Argv: argv,
		LogFile: m.path("retire.log"),
	})
}

// Retire takes the installation back. At once, containerd's default snapshotter and
// its configuration file are what they were; once the last container that uses ours
// is gone, so is everything else: then Retire returns. What fails is tried again until
// ctx ends.
func (m *Machine) Retire(ctx context.Context) error {
	const first, most, settle = time.Second, 30 * time.Second, 2 * time.Second
	m.Settle = min(m.Settle, settle) // nobody asks about the node any more
	delay := first
	for {
		done, err := m.retireStep(ctx)
		if done {
			return err
		}
		if err != nil {
			m.Logger.Error("leaving this machine", "error", err, "again after", delay)
			delay = min(2*delay, most)
		} else {
			delay = first
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(delay):
		}
	}
}

// retireStep does what can be done now; done is true when nothing is left.
func (m *Machine) retireStep(ctx context.Context) (done bool, err error) {
	err = m.locked(ctx, func() error {
		s, err := m.load()
		if err != nil || s.Root == "" {
			done = err == nil
			return err
		}
		m.Config, m.Socket, m.RestartCommand = s.Config, s.Socket, s.Restart
		if !s.Retiring {
			s.Retiring = true
			if err := m.save(s); err != nil {
				return err
			}
		}
		users, err := m.users(ctx)
		if err != nil {
			return err
		}
		if s.Edit != nil {
			if err := m.withdraw(ctx, &s); err != nil {
				return err
			}
			if users, err = m.users(ctx); err != nil {
				return err
			}
		}
		if err := m.keepKnown(ctx, s); err != nil {
			return err
		}
		if len(users) == 0 {
			done = true
			return m.finish(ctx, s)
		}
		m.note(func(n *Status) {
			n.State, n.Reason = Retiring, ""
			n.Message = fmt.Sprintf("%d containers still use lazy images, such as %s", len(users), users[0].Image)
		})
		return nil
	})
	if err != nil {
		done = false
	}
	return done, err
}

func (m *Machine) users(ctx context.Context) (_ []User, err error) {
	store, err := OpenStore(m.Socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return store.Users(ctx, Name)
}

// withdraw makes containerd's default what it was, and its file. The running containerd
// still knows the snapshotter, by a drop-in that only names it: without, it could not
// remove the containers that use it, nor the snapshots.
func (m *Machine) withdraw(ctx context.Context, s *state) error {
	if _, err := writeFile(m.dropInCopy(), nil, 0); err != nil {
		return err
	}
	before, err := m.look(ctx)
	if err != nil {
		m.Logger.Warn("the configuration while containers end cannot be compared", "error", err)
	}
	if _, err := writeFile(dropInFile, s.Drain, 0o600); err != nil {
		return err
	}
	if err := m.checkDrain(ctx, s, before); err != nil {
		m.Logger.Warn("the configuration while containers end is not what it should be", "error", err)
	}
	err = m.restart(ctx, true)
	if err == nil {
		err = m.dropUnusable(ctx, s.Original)
	}
	_, werr := writeFile(dropInFile, nil, 0)
	if werr = errors.Join(m.restore(s), werr); werr != nil {
		return errors.Join(err, werr)
	}
	s.Edit, s.Loaded = nil, loaded{}
	m.Logger.Info("containerd's default snapshotter and its configuration are as before", "snapshotter", s.Original)
	if err == nil {
		return m.save(*s)
	}
	// Better a container that cannot be removed than a node without containerd.
	return errors.Join(err, m.save(*s), m.restart(ctx, false))
}

// checkDrain has containerd read the configuration with Plan.Drain, and compares it with
// that before; nil: with nothing.
func (m *Machine) checkDrain(ctx context.Context, s *state, before *runtime) error {
	if before == nil {
		return nil
	}
	now, err := m.look(ctx)
	if err != nil {
		return err
	}
	return dropin.VerifyDrain(before.input.Dump, now.input.Dump, now.input, s.Original)
}

// restore puts containerd's file back.
func (m *Machine) restore(s *state) error {
	now, err := readOptional(s.Edit.Path)
	if err != nil {
		return err
	}
	before, err := dropin.Restore(now, s.Edit.Before, s.Edit.After, glob)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Edit.Path, err)
	}
	if err := m.write(*s.Edit, before); err != nil {
		return err
	}
	s.Edit.restoreTimes(m)
	if s.Edit.Created != "" {
		return removeEmpty(s.Edit.Created)
	}
	return nil
}

func (m *Machine) restart(ctx context.Context, with bool) error {
	r, err := m.restarter(ctx)
	if err != nil {
		return err
	}
	m.Logger.Info("restarting containerd", "how", r.How())
	if err := r.Restart(ctx); err != nil {
		return err
	}
	return m.well(ctx, with)
}

// keepKnown makes a containerd know the snapshotter again that was restarted before
// all of it was gone.
func (m *Machine) keepKnown(ctx context.Context, s state) (err error) {
	store, err := OpenStore(m.Socket)
	if err != nil {
		return err
	}
	ok, err := store.Loaded(ctx, Name)
	if err = errors.Join(err, store.Close()); err != nil || ok {
		return err
	}
	m.Logger.Info("containerd was restarted, and has to know the snapshotter until its last snapshot is gone")
	if err := m.revive(ctx); err != nil {
		return err
	}
	r, err := m.look(ctx)
	if err != nil {
		return err
	}
	r.input.Root = s.Root
	plan, err := dropin.Make(r.input)
	if err != nil {
		return err
	}
	e, _, err := r.edit(plan)
	if err != nil {
		return err
	}
	if fi, err := os.Stat(e.Path); err == nil {
		e.Changed = fi.ModTime()
	}
	s.Edit, s.Drain = &e, plan.Drain
	if err := m.save(s); err != nil {
		return err
	}
	if err := m.write(e, e.After); err != nil {
		return err
	}
	return m.withdraw(ctx, &s)
}

// finish removes everything, when no container uses the snapshotter any more.
func (m *Machine) finish(ctx context.Context, s state) error {
	if err := m.clearContainerd(ctx); err != nil {
		return err
	}
	if err := m.manager.Remove(ctx, Name); err != nil {
		return err
	}
	if _, err := os.Stat(s.Root); err == nil {
		if err := mount.Clear(s.Root, m.Logger); err != nil {
			return err
		}
	}
	if left := mountsBelow(s.Root); len(left) > 0 {
		return fmt.Errorf("still mounted: %v", left)
	}
	if err := os.RemoveAll(s.Root); err != nil {
		return err
	}
	m.Logger.Info("nothing is left of the installation but this process")
	return m.removeFiles(ctx)
}

// clearContainerd removes what containerd knows of our snapshots, and has it forget
// the snapshotter.
func (m *Machine) clearContainerd(ctx context.Context) (err error) {
	store, err := OpenStore(m.Socket)
	if err != nil {
		return err
	}
	known, err := store.Loaded(ctx, Name)
	if err == nil && known {
		err = store.Clear(ctx, Name)
	}
	if err = errors.Join(err, store.Close()); err != nil || !known {
		return err
	}
	return m.restart(ctx, false)
}

// removeFiles removes our files, and this process' own traces.
func (m *Machine) removeFiles(ctx context.Context) error {
	for _, name := range []string{"credentials", "bin", "snapshotter.json", "dropin.toml", "apparate.log", "apparate.log.1", "retire.log", "lock"} {
		if err := os.RemoveAll(m.path(name)); err != nil {
			return err
		}
	}
	for _, path := range []string{dropInFile, Socket, StatusSocket, StatusFile} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := removeEmpty(dropInDir); err != nil {
		return err
	}
	if err := m.manager.Remove(ctx, retireName); err != nil {
		return err
	}
	// The last one: as long as it is there Retire goes on.
	if err := os.Remove(m.stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(removeEmpty(runDir), removeEmpty(m.Dir))
}

// removeEmpty removes a directory unless something is in it, or it is not there.
func removeEmpty(dir string) error {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(all) > 0 {
		return err
	}
	return os.Remove(dir)
}

// Boot is called when the daemon has started, before containerd is: the drop-in is in
// memory, so that a machine whose daemon does not start runs as before. A retirement
// that a boot cut off goes on.
func (m *Machine) Boot(ctx context.Context) error {
	text, err := readOptional(m.dropInCopy())
	if err != nil {
		return err
	}
	if text != nil {
		_, err := writeFile(dropInFile, text, 0o600)
		return err
	}
	s, err := m.load()
	if err != nil || !s.Retiring {
		return err
	}
	return m.StartRetiring(ctx)
}
