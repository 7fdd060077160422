package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/apparate/apparate/snapshotter/dropin"
	"github.com/apparate/apparate/snapshotter/service"
)

// dropInFile is what containerd imports. The copy of it in Dir is for the next boot.
const dropInFile = dropInDir + "/apparate.toml"

func (m *Machine) dropInCopy() string { return m.path("dropin.toml") }

// configure makes containerd use the snapshotter. Anything that goes wrong is taken
// back; containerd is restarted only with a configuration that it understands.
func (m *Machine) configure(ctx context.Context, s *state, r *runtime) error {
	r.input.Root = s.Root
	plan, err := dropin.Make(r.input)
	if err != nil {
		return problem(ReasonConfig, "%w: containerd was not restarted", err)
	}
	e, try, err := r.edit(plan)
	if err != nil {
		return problem(ReasonConfig, "%w: containerd was not restarted", err)
	}
	restarter, err := m.restarter(ctx)
	if err != nil {
		return problem(ReasonInternal, "%w", err)
	}
	m.note(func(n *Status) { n.Restart = restarter.How() })
	have, err := readOptional(dropInFile)
	if err != nil {
		return err
	}
	key := sum(e.After, plan.DropIn)
	if bytes.Equal(e.Before, e.After) && bytes.Equal(have, plan.DropIn) {
		if ok, err := m.loaded(ctx, s, r, key); err != nil {
			return err
		} else if ok && s.Edit == nil {
			return m.remember(s, change{plan: plan, edit: e})
		} else if ok {
			return m.guard(ctx, s, change{edit: *s.Edit, key: key, restarter: restarter})
		}
	}
	if err := s.Failed.wait(key); err != nil {
		return err
	}
	if changed, err := changedSince(r.config, r.since); err != nil || changed && s.Edit != nil {
		if err == nil {
			err = problem(ReasonPending, "%s was changed and containerd not restarted since: restart it, for apparate does not put other people's changes into force", r.config)
		}
		return err
	}
	if m.Healthy != nil {
		if err := m.Healthy(ctx); err != nil {
			return &Problem{Reason: ReasonUnhealthy, State: Installing, Err: fmt.Errorf("containerd is not touched while the node is not well: %w", err)}
		}
	}
	for _, c := range plan.Changes {
		m.Logger.Info("containerd's configuration", "change", c)
	}
	return m.apply(ctx, s, r, change{plan: plan, edit: e, try: try, key: key, had: have, restarter: restarter})
}

// guard goes back when the node has become not ready soon after it was switched.
func (m *Machine) guard(ctx context.Context, s *state, c change) error {
	const probation = 3 * time.Minute
	if m.Healthy == nil || time.Since(s.Switched) > probation {
		return nil
	}
	err := m.Healthy(ctx)
	for range 3 { // not for a moment
		if !errors.Is(err, ErrNotReady) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(m.Settle / 2):
		}
		err = m.Healthy(ctx)
	}
	if !errors.Is(err, ErrNotReady) {
		return nil
	}
	return m.rollBack(ctx, s, c, err)
}

// change is a change of containerd's configuration.
type change struct {
	plan      dropin.Plan
	edit      edit
	try       []byte
	key       string
	had       []byte // the drop-in before
	restarter service.Restarter
}

// edit returns the file that is to be changed, and the main file that containerd then
// has.
func (r *runtime) edit(plan dropin.Plan) (e edit, try []byte, err error) {
	if r.k3s == nil {
		e, try = edit{Path: r.config, Before: r.input.Main, After: plan.Main}, plan.Main
	} else {
		t, err := r.k3s.Plan()
		if err != nil {
			return e, nil, err
		}
		e, try = edit{Path: t.Path, Before: t.Before, After: t.After}, t.Rendered
	}
	if _, err := os.Stat(filepath.Dir(e.Path)); errors.Is(err, fs.ErrNotExist) {
		e.Created = filepath.Dir(e.Path)
	}
	return e, try, nil
}

func (m *Machine) restarter(ctx context.Context) (service.Restarter, error) {
	return service.NewRestarter(ctx, service.Runtime{Socket: m.Socket, Command: m.RestartCommand, Wait: m.Wait})
}

// loaded says whether the running containerd has read the configuration of key.
func (m *Machine) loaded(ctx context.Context, s *state, r *runtime, key string) (bool, error) {
	now := loaded{PID: r.pid, Started: r.started, Digest: key}
	if s.Loaded == now {
		return true, nil
	}
	// Somebody else restarted it: what it read is what the files said then.
	for _, path := range []string{r.config, dropInFile} {
		changed, err := changedSince(path, r.since)
		if err != nil || changed {
			return false, err
		}
	}
	store, err := OpenStore(m.Socket)
	if err != nil {
		return false, err
	}
	ok, err := store.Loaded(ctx, Name)
	if err = errors.Join(err, store.Close()); err != nil || !ok {
		return false, err
	}
	s.Loaded = now
	return true, m.save(*s)
}

// changedSince says whether a file was changed after a process was started.
func changedSince(path string, t time.Time) (bool, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return fi.ModTime().After(t), nil
}

// wait refuses what was rolled back lately.
func (f *failed) wait(key string) error {
	const first, most = 10 * time.Minute, 24 * time.Hour
	if f.Digest != key {
		return nil
	}
	again := f.At.Add(min(first<<min(f.Times-1, 10), most))
	if time.Now().After(again) {
		return nil
	}
	return problem(ReasonRolledBack, "%s (rolled back; tried again after %s, or with another version or configuration)", f.Error, again.UTC().Format(time.RFC3339))
}

// apply writes the configuration, tries it, and puts it into force.
func (m *Machine) apply(ctx context.Context, s *state, r *runtime, c change) error {
	m.note(func(n *Status) { n.State, n.Reason, n.Message = Installing, "", "" })
	if _, err := writeFile(dropInFile, c.plan.DropIn, 0o600); err != nil {
		return err
	}
	if err := r.verify(ctx, c); err != nil {
		_, werr := writeFile(dropInFile, c.had, 0o600)
		if c.edit.Created != "" {
			werr = errors.Join(werr, os.Remove(c.edit.Created))
		}
		return errors.Join(problem(ReasonConfig, "containerd would not do what it should with the new configuration: %w: nothing was changed", err), werr)
	}
	if err := m.remember(s, c); err != nil {
		return err
	}
	if err := m.write(c.edit, c.edit.After); err != nil {
		return err
	}
	m.Logger.Info("restarting containerd", "how", c.restarter.How(), "config", c.edit.Path, "drop-in", dropInFile)
	err := c.restarter.Restart(ctx)
	if err == nil {
		err = m.well(ctx, true)
	}
	if err != nil {
		return m.rollBack(ctx, s, c, err)
	}
	s.Failed, s.Switched = failed{}, time.Now()
	if s.Loaded, err = m.current(ctx, c.key); err != nil {
		return err
	}
	if _, err := writeFile(m.dropInCopy(), c.plan.DropIn, 0o600); err != nil {
		return err
	}
	if err := m.save(*s); err != nil {
		return err
	}
	m.Logger.Info("containerd uses the snapshotter", "version", r.version)
	return m.dropUnusable(ctx, Name)
}

// verify has containerd read the new configuration.
func (r *runtime) verify(ctx context.Context, c change) (err error) {
	// Beside the main file, as imports may be relative; but not as *.toml, which some
	// file may import.
	f := filepath.Join(filepath.Dir(r.config), ".apparate-candidate")
	if _, err := writeFile(f, c.try, 0o600); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f)) }()
	after, err := r.dump(ctx, f, false)
	if err != nil {
		return err
	}
	return dropin.Verify(r.input.Dump, after, r.input)
}

// remember notes how the file was, unless that is known: an import that is there
// already is ours.
func (m *Machine) remember(s *state, c change) error {
	s.Original, s.Drain = c.plan.Original, c.plan.Drain
	if s.Edit == nil || s.Edit.Path != c.edit.Path || !bytes.Equal(c.edit.Before, c.edit.After) {
		e := c.edit
		if bytes.Equal(e.Before, e.After) { // the state was lost
			var err error
			if e.Before, err = dropin.Strip(e.After, glob); err != nil {
				return problem(ReasonConfig, "%s: %w", e.Path, err)
			}
		}
		if fi, err := os.Stat(e.Path); err == nil {
			e.Changed = fi.ModTime()
		}
		s.Edit = &e
	}
	return m.save(*s)
}

// write writes the file of an edit, for everybody to read when it is new.
func (m *Machine) write(e edit, data []byte) error {
	_, err := writeFile(e.Path, data, 0o644)
	return err
}

// rollBack puts everything back after cause, and restarts containerd once more.
func (m *Machine) rollBack(ctx context.Context, s *state, c change, cause error) error {
	// Whatever becomes of us: a node must not be left like that.
	const limit = 5 * time.Minute
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	m.Logger.Error("rolling back", "error", cause)
	err := m.write(c.edit, c.edit.Before)
	if _, werr := writeFile(dropInFile, c.had, 0o600); werr != nil {
		err = errors.Join(err, werr)
	}
	if c.had == nil {
		s.Edit.restoreTimes(m)
		s.Edit = nil
	}
	s.Loaded = loaded{}
	s.Failed = failed{Digest: c.key, Error: oneLine(cause.Error()), At: time.Now(), Times: s.Failed.Times + 1}
	err = errors.Join(err, m.save(*s))
	if rerr := c.restarter.Restart(ctx); rerr != nil {
		return problem(ReasonRolledBack, "containerd did not work with the new configuration (%w), and does not come back with the old one: look at its log: %w", cause, errors.Join(rerr, err))
	}
	if werr := m.well(ctx, false); werr != nil {
		err = errors.Join(err, werr)
	}
	return problem(ReasonRolledBack, "rolled back, containerd runs as before: %w", errors.Join(cause, err))
}

// restoreTimes gives the file of an edit the time that it had.
func (e *edit) restoreTimes(m *Machine) {
	if e == nil || e.Changed.IsZero() {
		return
	}
	if err := os.Chtimes(e.Path, time.Time{}, e.Changed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.Logger.Warn("the time of a file is not as it was", "error", err)
	}
}

// current is the containerd that runs now.
func (m *Machine) current(ctx context.Context, key string) (loaded, error) {
	pid, err := service.SocketOwner(ctx, m.Socket)
	if err != nil {
		return loaded{}, err
	}
	started, _, err := service.StartOf(pid)
	return loaded{PID: pid, Started: started, Digest: key}, err
}
