package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/apparate/apparate/snapshotter/host"
)

func newNodeInstallCommand() *cobra.Command {
	var c machineFlags
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make this machine a node with lazy images, without Kubernetes",
		Long: `Looks whether this machine can mount images lazily, installs the snapshotter as a
service, and makes it the default snapshotter of containerd, which is restarted once.
Where containerd does not come back everything is taken back. To do it again with
other options changes what has to change, and with the same ones nothing.

Without systemd nobody starts the snapshotter after a boot, and containerd runs as
before until this command is given again.`,
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := c.options(newLogger(c.level.Level))
			if err != nil {
				return err
			}
			m, err := host.New(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := m.Install(cmd.Context()); err != nil {
				return err
			}
			s := m.Status()
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "containerd %s mounts images lazily: %s, in %s, by %s\n", s.Containerd, s.DataPath, s.Root, s.Service)
			return err
		},
	}
	c.register(cmd)
	return cmd
}

func newNodeUninstallCommand() *cobra.Command {
	var c machineFlags
	var detach bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the installation back, without Kubernetes",
		Long: `At once containerd's default snapshotter and its configuration file are what they were;
containers that were started lazily run on. The command waits until the last of them
has gone, and then removes the snapshotter and every trace of it. Interrupted, it can
be given again.`,
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := host.New(cmd.Context(), host.Options{Dir: c.dir, Version: version, Logger: newLogger(c.level.Level)})
			if err != nil {
				return err
			}
			installed, err := m.Installed()
			switch {
			case err != nil:
				return err
			case !installed:
				return fmt.Errorf("nothing is installed in %s", c.dir)
			case detach:
				return m.StartRetiring(cmd.Context())
			}
			return m.Retire(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.dir, "host-dir", hostDir, "directory that was given at the installation")
	f.BoolVar(&detach, "detach", false, "do not wait: a process of its own does")
	f.Var(&c.level, "log-level", "debug, info, warn or error")
	return cmd
}

func newNodeBootCommand() *cobra.Command {
	dir := hostDir
	cmd := &cobra.Command{
		Use: "boot", Hidden: true,
		Short: "What is done when the snapshotter's service has started",
		Args:  exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := host.New(cmd.Context(), host.Options{Dir: dir, Version: version})
			if err != nil {
				return err
			}
			return m.Boot(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&dir, "host-dir", hostDir, "directory that was given at the installation")
	return cmd
}

func newNodeRetireCommand() *cobra.Command {
	dir := hostDir
	cmd := &cobra.Command{
		Use: "retire", Hidden: true,
		Short: "The process that takes the installation back",
		Args:  exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := host.New(cmd.Context(), host.Options{Dir: dir, Version: version})
			if err != nil {
				return err
			}
			err = m.Retire(cmd.Context())
			if errors.Is(err, cmd.Context().Err()) && cmd.Context().Err() != nil {
				return nil // an installation called it off
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "host-dir", hostDir, "directory that was given at the installation")
	return cmd
}
