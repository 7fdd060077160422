package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
)

// Install makes the machine a node, and a node what Options want; where that is so
// already it changes nothing. After an error containerd runs as it did before: see
// [Status] for what is wrong.
func (m *Machine) Install(ctx context.Context) error {
	return m.result(m.locked(ctx, func() error { return m.install(ctx) }))
}

func (m *Machine) install(ctx context.Context) error {
	// A retirement that is under way is called off.
	if err := m.manager.Remove(ctx, retireName); err != nil {
		return err
	}
	s, err := m.load()
	if err != nil {
		return err
	}
	if s.Retiring {
		s.Retiring = false
		if err := m.save(s); err != nil {
			return err
		}
	}
	r, err := m.look(ctx)
	if err != nil {
		if s.Root == "" {
			return err
		}
		// Containers that run need the daemon, whatever containerd does.
		return errors.Join(err, m.revive(ctx))
	}
	m.note(func(n *Status) { n.Containerd = r.version })
	if s.Root == "" {
		s.Root = filepath.Join(r.facts.Root, "io.containerd.snapshotter.v1."+Name)
	}
	s.Config, s.Socket, s.Restart = r.config, m.Socket, m.RestartCommand
	check := Preflight{Root: s.Root, Socket: m.Socket, MinFree: m.MinFree, Fail: m.FailCheck}
	if s.Edit == nil {
		if err := m.preflight(ctx, check); err != nil {
			return err
		}
	}
	if err := m.ensureDaemon(ctx, &s, r.facts.RegistryDirs); err != nil {
		return err
	}
	if err := m.configure(ctx, &s, r); err != nil {
		return err
	}
	return m.diskLeft(check)
}

// revive starts a daemon that does not run.
func (m *Machine) revive(ctx context.Context) error {
	st, err := m.manager.Status(ctx, Name)
	if err != nil || st.Running || !st.Installed {
		return err
	}
	return m.manager.Start(ctx, Name)
}

// preflight looks at everything once, before anything is changed.
func (m *Machine) preflight(ctx context.Context, p Preflight) error {
	checks := p.Run(ctx)
	for _, c := range checks {
		if c.Name == "kernel" {
			m.note(func(n *Status) { n.Kernel = strings.TrimPrefix(c.Found, "Linux ") })
		}
		level := slog.LevelDebug
		if m.checked == nil || m.checked[c.Name] != c.State {
			level = slog.LevelInfo // once, not with every try
		}
		m.Logger.Log(ctx, level, "preflight", "check", c.Name, "state", c.State, "found", c.Found, "advice", c.Advice)
	}
	m.checked = map[string]State{}
	for _, c := range checks {
		m.checked[c.Name] = c.State
	}
	bad := Failures(checks)
	if len(bad) == 0 {
		return nil
	}
	var all []string
	for _, c := range bad {
		// Without FUSE or a disk EROFS fails as well: the first one is the cause.
		if c.Name == "erofs" && len(bad) > 1 {
			continue
		}
		all = append(all, fmt.Sprintf("%s: %s: %s", c.Name, c.Found, c.Advice))
	}
	return &Problem{Reason: ReasonPreflight, State: NotLazy, Err: errors.New(strings.Join(all, "; "))}
}

// diskLeft says so when a node that works runs out of disk: then images are fetched
// again and again, and ordinary ones cannot be pulled.
func (m *Machine) diskLeft(p Preflight) error {
	c := p.disk(p.Root)
	if c.State != Failed {
		return nil
	}
	return &Problem{Reason: ReasonPreflight, State: Broken, Err: fmt.Errorf("disk: %s: %s", c.Found, c.Advice)}
}

// ValidCheck says whether name can be an Options.FailCheck.
func ValidCheck(name string) error {
	if names := []string{"fuse", "erofs", "disk"}; name != "" && !slices.Contains(names, name) {
		return fmt.Errorf("check %q: there are %s", name, strings.Join(names, ", "))
	}
	return nil
}
