package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/mount"
	"github.com/apparate/apparate/snapshotter/node"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/startup"
	"github.com/apparate/apparate/snapshotter/toc"
)

// mountConfig is the command line of `apparate mount`.
type mountConfig struct {
	image, dir, root, platform string
	hostsDirs, plainHTTP       []string
	dockerConfig               string
	cacheSize                  size
	delay                      time.Duration
	level                      logLevel
	out                        io.Writer
}

func newMountCommand() *cobra.Command {
	c := mountConfig{cacheSize: 20 << 30}
	c.level.Level = 4 // warnings: what matters is printed
	cmd := &cobra.Command{
		Use:   "mount IMAGE DIR",
		Short: "Mount an accelerated image read-only, without containerd",
		Long: `Mount an accelerated image read-only at DIR and fetch what is read, until
interrupted or until DIR is unmounted; then print what was fetched.

Needs root, /dev/fuse and a kernel with file-backed EROFS (6.12 or newer).`,
		Args: exactArgs(2, "an image and a directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.image, c.dir, c.out = args[0], args[1], cmd.OutOrStdout()
			return c.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.root, "cache", "", "directory that keeps what was fetched for the next mount (default: a temporary one)")
	f.StringVar(&c.platform, "platform", "", "platform to mount of a multi-platform image, as os/arch[/variant] (default: this machine's)")
	f.StringSliceVar(&c.hostsDirs, "hosts-dir", []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}, "directories with a hosts.toml for each registry, as containerd reads them")
	f.StringSliceVar(&c.plainHTTP, "plain-http", nil, "registries (host:port) to speak plain HTTP with; those on this machine are without it")
	f.StringVar(&c.dockerConfig, "docker-config", "", "directory of the docker config.json with registry credentials (default $DOCKER_CONFIG or ~/.docker)")
	f.Var(&c.cacheSize, "cache-size", "how much of the disk fetched layers may take")
	f.DurationVar(&c.delay, "background-fetch-delay", -1, "how long after the mount the rest is fetched; negative: never")
	f.Var(&c.level, "log-level", "debug, info, warn or error")
	return cmd
}

func (c *mountConfig) run(ctx context.Context) (err error) {
	if err := c.checkDir(); err != nil {
		return err
	}
	if c.root == "" {
		if c.root, err = os.MkdirTemp(temporaryDir(), "apparate-mount-"); err != nil {
			return fmt.Errorf("%w: choose a directory with --cache", err)
		}
		root := c.root
		defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	}
	if c.root, err = filepath.Abs(c.root); err != nil {
		return err
	}
	claim, err := mount.Claim(c.root)
	if err != nil {
		return fmt.Errorf("%w: choose another directory with --cache", err)
	}
	err = errors.Join(c.runIn(ctx), claim.Close())
	switch {
	case errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("%w: free some space on the disk of %s, or choose another directory with --cache", err, c.root)
	case errors.Is(err, unix.ENOTBLK):
		err = fmt.Errorf("%w: a directory on a disk can be chosen with --cache", err)
	}
	return err
}

// temporaryDir is where the cache is when nobody says where. Not /tmp: it is
// often in memory, on a tmpfs, from which EROFS cannot be mounted.
func temporaryDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

// checkDir makes sure that there is a directory to mount at.
func (c *mountConfig) checkDir() (err error) {
	st, err := os.Stat(c.dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist: make the directory first", c.dir)
	case err != nil:
		return fmt.Errorf("mount point: %w", err)
	case !st.IsDir():
		return fmt.Errorf("mount point %s is not a directory", c.dir)
	}
	c.dir, err = filepath.Abs(c.dir)
	return err
}

// runIn mounts with c.root as cache, waits for the end and tells what was fetched.
func (c *mountConfig) runIn(ctx context.Context) error {
	dev, err := node.Connect(c.root)
	if err != nil {
		return err
	}
	d, err := node.Config{
		Root: c.root, CacheBytes: int64(c.cacheSize), BackgroundDelay: c.delay, Logger: newLogger(c.level.Level),
		Profiles: startup.Off, // nothing is started
		Source:   source.Options{HostsDirs: c.hostsDirs, DockerConfig: c.dockerConfig, PlainHTTP: c.plainHTTP},
	}.Start(dev)
	if err != nil {
		return errors.Join(err, node.Disconnect(c.root), dev.Close())
	}
	err = c.serve(ctx, d)
	s := d.Images.Stats()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = errors.Join(err, d.Images.UnmountAll(), node.Disconnect(c.root), d.Close(end))
	if err == nil {
		_, err = fmt.Fprintf(c.out, "fetched %s of %s in %d requests (%d in the background), %s handed to programs\n",
			human(s.FetchedBytes), human(s.BlobBytes), s.DemandRequests+s.BackgroundRequests, s.BackgroundRequests, human(s.ServedBytes))
	}
	return err
}

// serve mounts the image at c.dir and waits for its end.
func (c *mountConfig) serve(ctx context.Context, d *node.Node) error {
	if err := d.Probe(); err != nil {
		return err
	}
	began := time.Now()
	manifest, layers, err := d.Sources.Resolve(ctx, c.image, c.platform)
	if err != nil {
		return err
	}
	for i, l := range layers {
		if l.TOCDigest == "" {
			return fmt.Errorf("layer %d of %s (%s) is not accelerated: run 'apparate convert' and mount the image it names", i+1, c.image, l.Digest)
		}
	}
	dir, err := d.Images.Mount(ctx, layers, false)
	if errors.As(err, new(*toc.Error)) {
		return fmt.Errorf("%w: pull the image the ordinary way, or convert it again", err)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(dir, c.dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", c.dir, err)
	}
	if _, err := fmt.Fprintf(c.out, "mounted %s (%s) at %s in %d ms; interrupt or unmount to end\n",
		c.image, manifest, c.dir, time.Since(began).Milliseconds()); err != nil {
		return errors.Join(err, mount.Detach(c.dir))
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return mount.Detach(c.dir)
		case <-tick.C:
			if ok, err := mount.Mounted(c.dir); err != nil || !ok {
				return err
			}
		}
	}
}

// human writes a number of bytes for people.
func human(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
