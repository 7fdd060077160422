package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/controllers/operator"
)

// flags are those of the operator that are no options of it.
type flags struct {
	kubeconfig, jobTemplate string
	logLevel, logFormat     string
}

func newRootCommand() *cobra.Command {
	o, f := operator.Defaults(), flags{}
	cmd := &cobra.Command{
		Use:   "apparate-operator",
		Short: "Turn pushed images that match a rule into accelerated images",
		Long: `Watches Registry, AccelerationRule and ImageConversion objects, takes push
notifications of registries, scans them for what notifications lost, and converts
the images that rules match.

Outside of a cluster it takes the current context of the kubeconfig.`,
		Version: version, SilenceErrors: true, SilenceUsage: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runOperator(cmd, o, f) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	fl := cmd.Flags()
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file (default: the cluster it runs in, else $KUBECONFIG or ~/.kube/config)")
	fl.StringSliceVar(&o.Namespaces, "namespace", nil, "watch only these namespaces of the cluster (default: all)")
	fl.StringVar(&o.MetricsAddress, "metrics-address", o.MetricsAddress, "host:port of Prometheus metrics; 0 serves none")
	fl.StringVar(&o.ProbeAddress, "probe-address", o.ProbeAddress, "host:port of /healthz and /readyz; 0 serves none")
	fl.StringVar(&o.NotificationAddress, "notification-address", o.NotificationAddress, "host:port of the endpoint for push notifications; 0 serves none")
	fl.StringVar(&o.NotificationCert, "notification-cert", "", "PEM certificate for TLS on that endpoint")
	fl.StringVar(&o.NotificationKey, "notification-key", "", "PEM key of that certificate")
	fl.StringVar(&o.Samples.Address, "samples-address", o.Samples.Address, "host:port at which nodes hand over samples of starts, for profiles; 0 serves none")
	fl.StringVar(&o.Samples.Account, "samples-account", "", "namespace/name of the service account of the nodes' pods, whose token for the audience "+api.SamplesAudience+" comes with each sample")
	fl.StringVar(&o.Samples.Cert, "samples-cert", "", "PEM certificate for TLS at that address")
	fl.StringVar(&o.Samples.Key, "samples-key", "", "PEM key of that certificate")
	fl.BoolVar(&o.LeaderElect, "leader-elect", o.LeaderElect, "let one of several replicas work")
	fl.StringVar(&o.LeaderNamespace, "leader-namespace", "", "namespace of the Lease for that (default: the operator's own)")
	fl.StringVar(&o.Mode, "conversion-mode", o.Mode, "process: convert in the operator; job: each conversion in a Kubernetes Job of its own")
	fl.StringVar(&o.Job.Image, "job-image", "", "image of the operator, for the Jobs")
	fl.StringVar(&f.jobTemplate, "job-template", "", "YAML file with a PodTemplateSpec that the Jobs' pods are made from: resources, node selector, tolerations")
	fl.IntVar(&o.Workers, "workers", o.Workers, "conversions at once")
	fl.IntVar(&o.WorkersPerRegistry, "workers-per-registry", o.WorkersPerRegistry, "conversions at once of one registry")
	fl.IntVar(&o.Processors, "processors", 0, "processors for each layer (default: all)")
	fl.StringVar(&o.TempDir, "temp-dir", "", "where converted layers wait for their upload (default: the system's directory for temporary files)")
	fl.DurationVar(&o.Timeout, "conversion-timeout", o.Timeout, "longest time of one attempt")
	fl.IntVar(&o.MaxAttempts, "max-attempts", o.MaxAttempts, "attempts before a conversion that fails for passing reasons is given up")
	fl.DurationVar(&o.FirstRetry, "first-retry", o.FirstRetry, "wait after the first failure; it doubles each time")
	fl.DurationVar(&o.MaxRetry, "max-retry", o.MaxRetry, "longest wait between attempts")
	fl.DurationVar(&o.HistoryAge, "history-age", o.HistoryAge, "how long finished ImageConversions are kept; 0 for ever")
	fl.IntVar(&o.HistoryCount, "history-count", o.HistoryCount, "how many finished ImageConversions of a namespace are kept; 0 for all")
	fl.IntVar(&o.MaxScanned, "max-scanned", o.MaxScanned, "conversions that may wait before a scan adds no more for now")
	fl.IntVar(&o.MaxTotal, "max-waiting", o.MaxTotal, "conversions that may wait before notifications are put off")
	fl.Float64Var(&o.ScanQPS, "scan-qps", o.ScanQPS, "requests a second to one registry")
	fl.IntVar(&o.ScanParallel, "scan-parallel", o.ScanParallel, "requests at once to one registry")
	fl.DurationVar(&o.MaxRecheck, "max-recheck", o.MaxRecheck, "longest time before a known tag is looked at again")
	fl.DurationVar(&o.CheckInterval, "check-interval", o.CheckInterval, "how often registries and their Secrets are looked at")
	fl.Float64Var(&o.QPS, "kube-qps", o.QPS, "requests a second to the Kubernetes API")
	fl.StringVar(&o.PullSecrets, "pull-secrets", "", "JSON file with the pull secrets to keep in namespaces and service accounts, read again when it changes (default: none are kept)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&f.logFormat, "log-format", "json", "json or text")
	cmd.AddCommand(newRunConversionCommand())
	return cmd
}

func runOperator(cmd *cobra.Command, o operator.Options, f flags) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return usageError{fmt.Errorf("--log-level %q: use debug, info, warn or error", f.logLevel)}
	}
	var err error
	if o.Log, err = setLog(level, f.logFormat); err != nil {
		return err
	}
	if f.jobTemplate != "" {
		text, err := os.ReadFile(f.jobTemplate)
		if err != nil {
			return usageError{fmt.Errorf("--job-template: %w", err)}
		}
		if err := yaml.UnmarshalStrict(text, &o.Job.Template); err != nil {
			return usageError{fmt.Errorf("--job-template %s is no PodTemplateSpec: %w", f.jobTemplate, err)}
		}
	}
	if err := o.Check(); err != nil {
		return usageError{err}
	}
	kube, err := kubeConfig(f.kubeconfig)
	if err != nil {
		return err
	}
	m, err := operator.New(kube, o)
	if err != nil {
		return err
	}
	o.Log.Info("starting", "version", version, "server", kube.Host, "mode", o.Mode)
	return m.Start(cmd.Context())
}

// kubeConfig finds the API server as kubectl would, but prefers the cluster that
// the operator runs in.
func kubeConfig(file string) (*rest.Config, error) {
	if file == "" {
		c, err := rest.InClusterConfig()
		if err == nil || !errors.Is(err, rest.ErrNotInCluster) {
			return c, err
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the Kubernetes API (--kubeconfig): %w", err)
	}
	return c, nil
}
