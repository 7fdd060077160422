package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/agent"
	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/snapshotter/kubeapi"
	"github.com/apparate/apparate/snapshotter/podsecrets"
)

// machineFlags say how a machine becomes a node.
type machineFlags struct {
	dir, config, socket, failCheck string
	restart                        []string
	cacheSize, minFree             size
	delay                          time.Duration
	hostsDirs                      []string
	providers, providerBin         string
	level                          logLevel
}

func (m *machineFlags) register(cmd *cobra.Command) {
	m.cacheSize, m.minFree = 20<<30, 1<<30
	f := cmd.Flags()
	f.StringVar(&m.dir, "host-dir", hostDir, "directory of the program, its options and its state")
	f.StringVar(&m.config, "containerd-config", "", "containerd's main configuration file (default: the one that containerd runs with)")
	f.StringVar(&m.socket, "containerd-socket", "/run/containerd/containerd.sock", "unix socket of containerd")
	f.StringSliceVar(&m.restart, "restart-command", nil, "command and arguments, with commas between, that restart containerd (default: find out)")
	f.Var(&m.cacheSize, "cache-size", "how much of the disk fetched layers may take")
	f.Var(&m.minFree, "min-free", "how much of the disk has to be free")
	f.DurationVar(&m.delay, "background-fetch-delay", 30*time.Second, "how long after its mount the rest of an image is fetched; negative: never")
	f.StringSliceVar(&m.hostsDirs, "hosts-dir", nil, "directories with a hosts.toml for each registry (default: those of containerd)")
	f.StringVar(&m.providers, "credential-provider-config", "", "kubelet's CredentialProviderConfig, a file or a directory")
	f.StringVar(&m.providerBin, "credential-provider-bin-dir", "", "directory of the credential provider plugins")
	f.StringVar(&m.failCheck, "fail-check", "", "make a check of the preflight fail, to see what happens then")
	f.Var(&m.level, "log-level", "debug, info, warn or error")
}

// hostDir is where a node has what is not containerd's.
const hostDir = "/var/lib/apparate"

// options are those of a host.Machine.
func (m *machineFlags) options(log *slog.Logger) (host.Options, error) {
	if err := host.ValidCheck(m.failCheck); err != nil {
		return host.Options{}, usageError{fmt.Errorf("--fail-check: %w", err)}
	}
	daemon := map[string][]string{
		"cache-size": {m.cacheSize.String()}, "background-fetch-delay": {m.delay.String()}, "log-level": {m.level.String()},
	}
	if len(m.hostsDirs) > 0 {
		daemon["hosts-dir"] = m.hostsDirs
	}
	if m.providers != "" {
		daemon["credential-provider-config"], daemon["credential-provider-bin-dir"] = []string{m.providers}, []string{m.providerBin}
	}
	return host.Options{
		Dir: m.dir, Config: m.config, Socket: m.socket, RestartCommand: m.restart, Daemon: daemon,
		MinFree: uint64(m.minFree), FailCheck: m.failCheck, Version: version, Logger: log,
	}, nil
}

// agentFlags are the command line of `apparate node`.
type agentFlags struct {
	machineFlags
	node, daemonSet, listen, credentials string
	podCredentials, startupTaint         bool
	samples                              agent.SampleOptions
}

func newNodeCommand() *cobra.Command {
	var c agentFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Make this machine a node with lazy images: the process of the DaemonSet",
		Long: `Without a further command it is the process of the DaemonSet, in a privileged pod with
the host's processes. It looks whether the machine can mount images lazily, installs
the snapshotter as a service of the host, makes it the default snapshotter of
containerd, and goes back by itself where containerd or the node do not come back
after that. How it is stands in the node's annotation ` + agent.Annotation + `
and condition ` + agent.Condition + `.

When it ends because the node is not labelled any more or the DaemonSet is deleted,
the machine becomes what it was: at once for new containers, and without a trace once
the last container that was started lazily has gone.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	c.register(cmd)
	f := cmd.Flags()
	f.StringVar(&c.node, "node-name", os.Getenv("NODE_NAME"), "name of this machine's Node (default $NODE_NAME)")
	f.StringVar(&c.daemonSet, "daemonset", "", "namespace/name of the DaemonSet of this pod")
	f.StringVar(&c.listen, "listen-address", ":9465", "host:port of /readyz, /healthz and /metrics; empty: none")
	f.StringVar(&c.credentials, "credentials", "", "directory in the pod with files of registry credentials for the snapshotter")
	f.BoolVar(&c.podCredentials, "pod-credentials", false, "use the pull secrets of this node's pods and their service accounts")
	f.BoolVar(&c.startupTaint, "startup-taint", false, "take the taint "+agent.Taint+" off the node when lazy images work, or are known not to")
	f.StringVar(&c.samples.Service, "samples-service", "", "namespace/name of the operator's service that takes samples of starts; empty: they stay here, for 'apparate profile record'")
	f.StringVar(&c.samples.Token, "samples-token", "", "file in the pod with a token for it, of the audience "+api.SamplesAudience)
	f.StringVar(&c.samples.CA, "samples-ca", "", "file in the pod with the certificates (PEM) by which it is trusted; empty: plain HTTP")
	cmd.AddCommand(newNodeCheckCommand(), newNodeInstallCommand(), newNodeUninstallCommand(), newNodeBootCommand(), newNodeRetireCommand(), newNodeRemoveAllCommand())
	return cmd
}

func (c *agentFlags) run(ctx context.Context) error {
	podRoot := os.Getenv(podRootEnv)
	if podRoot == "" {
		return enterHost(ctx, c.dir)
	}
	log := newLogger(c.level.Level)
	api, err := kubeapi.InCluster(podRoot)
	if err != nil {
		return err
	}
	o := agent.Options{
		Node: c.node, DaemonSet: c.daemonSet, API: api, StartupTaint: c.startupTaint, Listen: c.listen, Logger: log,
	}
	if c.credentials != "" {
		o.Credentials = filepath.Join(podRoot, c.credentials)
	}
	o.Samples = c.samples
	for _, path := range []*string{&o.Samples.Token, &o.Samples.CA} {
		if *path != "" {
			*path = filepath.Join(podRoot, *path)
		}
	}
	if c.podCredentials {
		o.PodCredentials = func(ctx context.Context, dir string) error {
			return (&podsecrets.Keeper{API: api, Node: c.node, Dir: dir, Logger: log}).Run(ctx)
		}
	}
	a, err := agent.New(o)
	if err != nil {
		return usageError{err}
	}
	mo, err := c.options(log)
	if err != nil {
		return err
	}
	if c.podCredentials {
		// A pod's image is pulled as soon as we hear of the pod.
		mo.Daemon["credentials-wait"] = []string{"3s"}
	}
	mo.Healthy, mo.Kubelet = a.NodeReady, a.KubeletVersion(ctx)
	m, err := host.New(ctx, mo)
	if err != nil {
		return err
	}
	err = a.Run(ctx, m)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func newNodeRemoveAllCommand() *cobra.Command {
	var namespace, daemonSet, operator string
	cmd := &cobra.Command{
		Use:   "remove-all",
		Short: "End the installation in a cluster: what the chart calls before it is uninstalled",
		Long: `Deletes the DaemonSet, waits until its pods have seen to it that their nodes become
what they were, and removes annotation and condition from the nodes; then the operator
and the pull secrets that it kept.`,
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if namespace == "" || daemonSet == "" {
				return usageError{errors.New("--namespace and --daemonset say what is to be removed")}
			}
			api, err := kubeapi.InCluster("/")
			if err != nil {
				return err
			}
			return agent.Removal{
				API: api, Namespace: namespace, DaemonSet: daemonSet, Operator: operator, Progress: cmd.OutOrStdout(),
			}.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&namespace, "namespace", "", "namespace of the DaemonSet")
	cmd.Flags().StringVar(&daemonSet, "daemonset", "", "its name")
	cmd.Flags().StringVar(&operator, "operator", "", "name of the operator's Deployment, which is deleted, too, with the pull secrets that it kept")
	return cmd
}
