package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/apparate/apparate/snapshotter"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/mount"
	"github.com/apparate/apparate/snapshotter/node"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/startup"
)

// snapshotterConfig is the command line of `apparate snapshotter`.
type snapshotterConfig struct {
	root, address  string
	hostsDirs      []string
	dockerConfig   string
	credentials    credentialFlags
	metricsAddress string
	statusAddress  string
	cacheSize      size
	profiles       startup.Mode
	profileSize    size
	delay          time.Duration
	prepareTimeout time.Duration
	credentialWait time.Duration
	foreignWait    time.Duration
	level          logLevel
	config         string
}

func newSnapshotterCommand() *cobra.Command {
	c := snapshotterConfig{cacheSize: 20 << 30, profiles: startup.On, profileSize: 256 << 20}
	cmd := &cobra.Command{
		Use:   "snapshotter",
		Short: "Serve lazily mounted images to containerd",
		Long: `Serve lazily mounted images to containerd, as a proxy snapshotter on a unix socket.

Two processes run: a small one that holds the FUSE connection and the socket, and
the one that does the work. When the second ends, however it ends, the first
starts it anew and containers do not notice. SIGHUP restarts the second on
purpose (after an upgrade of the binary); SIGTERM ends both and unmounts.`,
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applyConfig(cmd.Flags(), c.config); err != nil {
				return err
			}
			return c.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.config, "config", "", "JSON file with options by their names, {\"cache-size\": [\"10GiB\"]}; the command line goes before it. It is read again on SIGHUP")
	f.StringVar(&c.root, "root", "/var/lib/apparate", "directory of snapshots, cache and mounts")
	f.StringVar(&c.address, "address", "/run/apparate/snapshotter.sock", "unix socket on which containerd reaches us")
	f.StringSliceVar(&c.hostsDirs, "hosts-dir", []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}, "directories with a hosts.toml for each registry, as containerd reads them")
	f.StringVar(&c.dockerConfig, "docker-config", "", "directory of the docker config.json with registry credentials (default $DOCKER_CONFIG or ~/.docker)")
	c.credentials.register(cmd)
	f.StringVar(&c.metricsAddress, "metrics-address", "", "host:port for Prometheus metrics at /metrics and health at /healthz; empty: none")
	f.StringVar(&c.statusAddress, "status-address", "", "unix socket for 'apparate status', with the metrics, too (default: status.sock beside --address)")
	f.Var(&c.cacheSize, "cache-size", "how much of the disk fetched layers may take")
	f.Var(&c.profiles, "profiles", "start-up profiles: on, record (what containers read first) or off")
	f.Var(&c.profileSize, "profile-size", "how much of a start-up profile's pack is fetched at most; never more than 60 % of the image")
	f.DurationVar(&c.delay, "background-fetch-delay", 30*time.Second, "how long after its mount the rest of an image is fetched; negative: never")
	f.DurationVar(&c.prepareTimeout, "prepare-timeout", 30*time.Second, "how long a layer may wait for its registry before it is pulled the ordinary way")
	f.DurationVar(&c.credentialWait, "credentials-wait", 0, "how long after the beginning of a pull its credentials may come into --credentials-dir")
	f.DurationVar(&c.foreignWait, "zstd-chunked-wait", 0, "how long the first layer of an image that was not converted may wait for the manifest, to find zstd:chunked layers of podman and skopeo; 0: they are pulled the ordinary way")
	f.Var(&c.level, "log-level", "debug, info, warn or error")
	return cmd
}

func (c *snapshotterConfig) run(ctx context.Context) error {
	var err error
	if c.root, err = filepath.Abs(c.root); err != nil {
		return err
	}
	if c.address, err = filepath.Abs(c.address); err != nil {
		return err
	}
	if c.statusAddress == "" {
		c.statusAddress = filepath.Join(filepath.Dir(c.address), "status.sock")
	}
	log := newLogger(c.level.Level)
	if in, ok := mount.Inherited(); ok {
		return c.serve(ctx, in, log)
	}
	err = mount.Hold(ctx, mount.HoldOptions{
		Root: c.root, Blobs: images.BlobsDir(c.root), Socket: c.address, Logger: log,
	})
	switch {
	case errors.As(err, new(*exec.ExitError)):
		// The daemon has said why on the same standard error. That is the last line, which
		// service managers show.
		return reported{err}
	case errors.Is(err, mount.ErrRoot):
		return fmt.Errorf("%w: choose another directory with --root", err)
	case errors.Is(err, mount.ErrSocket):
		return fmt.Errorf("%w: choose another path with --address", err)
	}
	return err
}

// serve is the process that does the work, below the holder.
func (c *snapshotterConfig) serve(ctx context.Context, in mount.Inheritance, log *slog.Logger) error {
	// A hand-over ends this process and nothing else: the next one goes on.
	handover := make(chan os.Signal, 1)
	signal.Notify(handover, syscall.SIGUSR2)
	defer signal.Stop(handover)

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cfg := snapshotter.Config{
		Root: filepath.Join(c.root, "overlay"), PrepareTimeout: c.prepareTimeout, CredentialsWait: c.credentialWait, ForeignWait: c.foreignWait,
		Metrics: snapshotter.NewMetrics(reg), Logger: log,
	}
	status := &statusSource{errors: source.NewLastErrors(20), about: daemonStatus{
		Version: version, PID: os.Getpid(), Since: time.Now(), Root: c.root, DataPath: "EROFS over FUSE",
	}}
	data, err := node.Config{
		Root: c.root, CacheBytes: int64(c.cacheSize), BackgroundDelay: c.delay, Logger: log,
		Profiles: c.profiles, ProfileBytes: int64(c.profileSize),
		Source: c.credentials.apply(source.Options{
			HostsDirs: c.hostsDirs, DockerConfig: c.dockerConfig, Logger: log, Report: status.errors.Report,
		}),
	}.Start(in.Fuse)
	if err != nil {
		return err
	}
	if err := data.Probe(); err != nil {
		cfg.NotLazy = err.Error()
		status.about.DataPath, status.about.NotLazy = "", cfg.NotLazy
		log.Warn("images cannot be mounted lazily on this machine: all layers are pulled the ordinary way", "reason", err)
	} else {
		cfg.Images, cfg.Manifests, status.images = data.Images, data.Sources, data.Images
		cfg.Starts = data.Starts
		reg.MustRegister(newImagesCollector(data.Images), data.Starts)
	}
	sn, err := snapshotter.New(cfg)
	if err != nil {
		return errors.Join(err, data.Close(ctx))
	}
	stopMetrics, err := c.serveMetrics(reg, status, data.Starts, log)
	if err != nil {
		return errors.Join(err, sn.Close(), data.Close(ctx))
	}
	g := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(g, snapshotservice.FromSnapshotter(sn))
	failed := make(chan error, 1)
	go func() { failed <- g.Serve(in.Listener) }()
	go data.Images.Resume(ctx)
	idle, stopIdle := context.WithCancel(ctx)
	defer stopIdle()
	go leanWhenIdle(idle, log, data.Images.Stats, mount.Lean)
	log.Info("serving", "address", c.address, "root", c.root, "lazy", cfg.Images != nil, "pid", os.Getpid())
	if err := in.Ready(); err != nil {
		return err
	}

	var serveErr error
	leave := false
	select {
	case <-ctx.Done():
		leave = true
	case <-handover:
		log.Info("handing over to the next process")
	case serveErr = <-failed:
	}
	g.Stop()
	stopMetrics()
	err = errors.Join(serveErr, sn.Close())
	if leave {
		err = errors.Join(err, data.Images.UnmountAll())
	}
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(err, data.Close(end))
}

// serveMetrics answers /metrics and /healthz, and on the unix socket /status, /samples and
// /starts (api/profile.Sample and startup.Timeline), until the returned function is called.
func (c *snapshotterConfig) serveMetrics(reg *prometheus.Registry, status http.Handler, starts *startup.Engine, log *slog.Logger) (stop func(), err error) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	stopMetrics := func() {}
	if c.metricsAddress != "" {
		l, err := net.Listen("tcp", c.metricsAddress)
		if err != nil {
			return nil, fmt.Errorf("--metrics-address: %w", err)
		}
		stopMetrics = serveHTTP(l, mux, log)
	}
	local := http.NewServeMux()
	local.Handle("/", mux)
	local.Handle("/status", status)
	local.HandleFunc("GET /samples", starts.ServeSamples)
	local.HandleFunc("GET /starts", starts.ServeStarts)
	stopStatus, err := serveStatus(c.statusAddress, local, log)
	if err != nil {
		stopMetrics()
		return nil, err
	}
	return func() { stopMetrics(); stopStatus() }, nil
}

// imagesCollector turns the data path's statistics into metrics when asked.
type imagesCollector struct {
	images *images.Manager
	descs  []statDesc
}

type statDesc struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(images.Stats) float64
}

func newImagesCollector(m *images.Manager) *imagesCollector {
	c := &imagesCollector{images: m}
	add := func(name, help string, kind prometheus.ValueType, value func(images.Stats) float64) {
		c.descs = append(c.descs, statDesc{prometheus.NewDesc("apparate_snapshotter_"+name, help, nil, nil), kind, value})
	}
	add("images_mounted", "Images that are mounted.", prometheus.GaugeValue, func(s images.Stats) float64 { return float64(s.Images) })
	add("images_local", "Images that new containers read without this daemon.", prometheus.GaugeValue, func(s images.Stats) float64 { return float64(s.Local) })
	add("layers_loaded", "Layers that can be read.", prometheus.GaugeValue, func(s images.Stats) float64 { return float64(s.Layers) })
	add("cache_bytes", "Bytes that the layer cache takes on disk.", prometheus.GaugeValue, func(s images.Stats) float64 { return float64(s.CacheBytes) })
	add("fetched_bytes_total", "Compressed bytes of layers fetched from registries.", prometheus.CounterValue, func(s images.Stats) float64 { return float64(s.FetchedBytes) })
	add("served_bytes_total", "Bytes of layers handed to the kernel.", prometheus.CounterValue, func(s images.Stats) float64 { return float64(s.ServedBytes) })
	add("demand_requests_total", "Range requests made because a program waited.", prometheus.CounterValue, func(s images.Stats) float64 { return float64(s.DemandRequests) })
	add("background_requests_total", "Range requests made ahead of need.", prometheus.CounterValue, func(s images.Stats) float64 { return float64(s.BackgroundRequests) })
	add("reads_waited_total", "Reads that had to wait for a registry.", prometheus.CounterValue, func(s images.Stats) float64 { return float64(s.WaitedReads) })
	add("digest_failures_total", "Chunks whose bytes did not match their digest; they were never handed out.", prometheus.CounterValue, func(s images.Stats) float64 { return float64(s.DigestFailures) })
	return c
}

// Describe sends the descriptions of all metrics.
func (c *imagesCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d.desc
	}
}

// Collect sends the values of now.
func (c *imagesCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.images.Stats()
	for _, d := range c.descs {
		ch <- prometheus.MustNewConstMetric(d.desc, d.kind, d.value(s))
	}
}
