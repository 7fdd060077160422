package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/converter/registry"
)

func newProfileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Record what an image needs to start, and bring it along next time",
		Long: `A start-up profile says which parts of an accelerated image its containers read
when they start, and packs these parts together. It is kept in the registry,
beside the image, and nodes fetch it with one request while the container starts.

A cluster with the operator makes profiles by itself. By hand: start the image on a node
with the snapshotter, then 'apparate profile push IMAGE' on that node.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q: use record, show, push or predict", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newProfileRecordCommand(), newProfileShowCommand(), newProfilePushCommand(), newProfilePredictCommand())
	return cmd
}

// profileFlags are what the commands below profile have in common.
type profileFlags struct {
	address, output, tempDir string
	registry                 registry.Options
}

func (f *profileFlags) register(cmd *cobra.Command, daemon bool) {
	fl := cmd.Flags()
	if daemon {
		fl.StringVar(&f.address, "status-address", statusAddress, "unix socket of the snapshotter's status")
	}
	fl.BoolVar(&f.registry.PlainHTTP, "plain-http", false, "allow registries without TLS")
	fl.BoolVar(&f.registry.Insecure, "insecure", false, "accept any TLS certificate")
}

func (f *profileFlags) registerOutput(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
}

// image reads the name of an image, and returns what asks its registry.
func (f *profileFlags) image(image string) (*registry.Client, name.Reference, error) {
	client, err := registry.New(f.registry)
	if err != nil {
		return nil, nil, err
	}
	ref, err := client.Parse(image)
	return client, ref, err
}

// platforms lists the platform manifests of an image, and returns what asks its registry.
func (f *profileFlags) platforms(ctx context.Context, image string) (*registry.Client, []profile.Platform, error) {
	client, ref, err := f.image(image)
	if err != nil {
		return nil, nil, err
	}
	all, err := profile.Platforms(ctx, client, ref)
	return client, all, err
}

func (f *profileFlags) check() error {
	if f.output != "text" && f.output != "json" {
		return usageError{fmt.Errorf("--output %q: use text or json", f.output)}
	}
	return nil
}

// askSamples asks the daemon for the samples of a repository, the newest first.
func (f *profileFlags) askSamples(ctx context.Context, repo name.Repository) ([]api.Sample, error) {
	address := statusSocket(f.address)
	raw, err := askDaemon(ctx, address, "/samples", api.MaxSamplesBytes)
	if errors.Is(err, errNotServed) {
		return nil, fmt.Errorf("the snapshotter at %s records no starts: it is of an older version, or was told not to", address)
	}
	if err != nil {
		return nil, err
	}
	all, err := api.DecodeSamples(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the samples of the snapshotter at %s: %w", address, err)
	}
	list := slices.DeleteFunc(all, func(s api.Sample) bool {
		r, err := name.NewRepository(s.Image)
		return err != nil || r.Name() != repo.Name()
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("the snapshotter at %s has recorded no start of %s: start a container of it here, and try again about 20 seconds later", address, repo)
	}
	slices.SortStableFunc(list, func(a, b api.Sample) int { return b.Started.Compare(a.Started) })
	return list, nil
}

// readSamples reads samples from files, "-" being standard input.
func readSamples(files []string, stdin io.Reader) ([]api.Sample, error) {
	var all []api.Sample
	for _, name := range files {
		raw, err := readBounded(name, stdin)
		if err != nil {
			return nil, err
		}
		list, err := api.DecodeSamples(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; 'apparate profile record' writes such files", name, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

func readBounded(name string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it is only read
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, api.MaxSamplesBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return raw, nil
}

// hasTag says whether an image's name has a tag or a digest; without, all
// images of the repository are meant.
func hasTag(image string) bool {
	return strings.Contains(image, "@") || strings.LastIndexByte(image, ':') > strings.LastIndexByte(image, '/')
}

// pick returns the samples of the manifests that image means. Only a tag has to
// be asked for at the registry.
func (f *profileFlags) pick(ctx context.Context, client *registry.Client, image string, ref name.Reference, samples []api.Sample) ([]api.Sample, error) {
	if !hasTag(image) {
		return samples, nil
	}
	platforms, err := profile.Platforms(ctx, client, ref)
	if err != nil {
		return nil, err
	}
	var picked []api.Sample
	var others []string
	for _, s := range samples {
		if slices.ContainsFunc(platforms, func(p profile.Platform) bool { return p.Ref.DigestStr() == s.Manifest }) {
			picked = append(picked, s)
		} else if !slices.Contains(others, s.Manifest) {
			others = append(others, s.Manifest)
		}
	}
	if len(picked) == 0 {
		return nil, fmt.Errorf("no sample is of %s as it is now: they are of %s; start it again and record that, or name one of those as %s@DIGEST",
			image, strings.Join(others[:min(len(others), 3)], ", "), ref.Context())
	}
	return picked, nil
}

func newProfileRecordCommand() *cobra.Command {
	var f profileFlags
	var file string
	cmd := &cobra.Command{
		Use:   "record IMAGE",
		Short: "Write down what the last starts of an image on this node read",
		Long: `Asks the snapshotter of this machine what the starts of IMAGE that it recorded read,
and writes that as JSON: the input of 'apparate profile push'. Without a tag or digest
all images of the repository are meant.

A start is recorded from the mount of the image until 20 seconds after its first
container was created, or until nothing new is read.`,
		Example: `  apparate profile record registry.example.com/team/app:v1-apparate -o app.json`,
		Args:    exactArgs(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, ref, err := f.image(args[0])
			if err != nil {
				return err
			}
			samples, err := f.askSamples(cmd.Context(), ref.Context())
			if err == nil {
				samples, err = f.pick(cmd.Context(), client, args[0], ref, samples)
			}
			if err != nil {
				return err
			}
			if err := writeSamples(cmd.OutOrStdout(), file, samples); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s, the newest started %s\n", starts(len(samples)), ref.Context(), samples[0].Started.Local().Format(timeFormat))
			return err
		},
	}
	f.register(cmd, true)
	cmd.Flags().StringVarP(&file, "out", "o", "-", "file to write")
	return cmd
}

const timeFormat = "2006-01-02 15:04:05"

func starts(n int) string {
	if n == 1 {
		return "1 start"
	}
	return fmt.Sprintf("%d starts", n)
}

func writeSamples(w io.Writer, file string, samples []api.Sample) error {
	raw, err := json.Marshal(samples)
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	if file == "-" {
		_, err = w.Write(raw)
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}

// notAccelerated adds what to do where the plain image was named.
func notAccelerated(err error, image string) error {
	if fault.KindOf(err) == fault.NotAccelerated {
		return fmt.Errorf("%w; or name the accelerated image: %s has a tag with -apparate behind it", err, image)
	}
	return err
}
