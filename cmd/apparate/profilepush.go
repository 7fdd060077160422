package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/profile"
)

func newProfilePushCommand() *cobra.Command {
	var f profileFlags
	var o profile.Options
	var budget size
	cmd := &cobra.Command{
		Use:   "push IMAGE [FILE...]",
		Short: "Make a start-up profile of recorded starts and put it beside the image",
		Long: `Merges recorded starts of IMAGE, packs what they read, and pushes that to the registry
of IMAGE, where nodes find it. The starts are those in the FILEs, which
'apparate profile record' writes ("-" is standard input), or those that the snapshotter of this machine has.

The newest profile of an image counts; the one before it is kept for nodes that
are reading it. Where the newest is the same already, nothing is pushed. Of two starts
and more one is kept out of the profile to measure it on.`,
		Example: `  apparate profile push registry.example.com/team/app:v1-apparate
  apparate profile push registry.example.com/team/app:v1-apparate node-1.json node-2.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s takes an image and files, got nothing", cmd.Name())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if o.Merge.Share < 0 || o.Merge.Share > 1 {
				return usageError{fmt.Errorf("--share %v: use a number from 0 to 1", o.Merge.Share)}
			}
			o.Build.TempDir, o.Build.Budget = f.tempDir, int64(budget)
			made, err := runProfilePush(cmd.Context(), &f, args[0], args[1:], cmd.InOrStdin(), o)
			if err != nil {
				return notAccelerated(err, args[0])
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(made)
			}
			return printMade(cmd.OutOrStdout(), made)
		},
	}
	f.register(cmd, true)
	f.registerOutput(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.tempDir, "temp-dir", "", "where the pack waits for its upload (default: the system's directory for temporary files)")
	fl.Float64Var(&o.Merge.Share, "share", profile.DefaultShare, "share of the starts, 0 to 1, that must have read what goes into the profile")
	fl.Var(&budget, "budget", "longest pack (default: 60 % of the image, 256MiB at most)")
	return cmd
}

func runProfilePush(ctx context.Context, f *profileFlags, image string, files []string, stdin io.Reader, o profile.Options) ([]profile.Made, error) {
	client, ref, err := f.image(image)
	if err != nil {
		return nil, err
	}
	var samples []api.Sample
	if len(files) > 0 {
		samples, err = readSamples(files, stdin)
	} else {
		samples, err = f.askSamples(ctx, ref.Context())
	}
	if err != nil {
		return nil, err
	}
	// Here a name without a tag is "latest", as with other commands that write.
	if samples, err = f.pick(ctx, client, ref.String(), ref, samples); err != nil {
		return nil, err
	}
	byManifest := profile.Manifests(samples)
	var all []profile.Made
	var digests []string
	for d := range byManifest {
		digests = append(digests, d)
	}
	slices.Sort(digests)
	for _, d := range digests {
		made, err := profile.Make(ctx, client, ref.Context().Digest(d), byManifest[d], o)
		if err != nil {
			return all, err
		}
		all = append(all, made)
	}
	return all, nil
}

func printMade(w io.Writer, all []profile.Made) error {
	for i := range all {
		m := &all[i]
		if m.Unchanged {
			if _, err := fmt.Fprintf(w, "%s has this profile already: %s\n", m.Image, m.Descriptor.Digest); err != nil {
				return err
			}
			continue
		}
		s := &m.Summary
		text := fmt.Sprintf("%s has the profile %s\n", m.Image, m.Descriptor.Digest)
		text += fmt.Sprintf("  of %s: %d chunks in %d groups, %s packed into %s\n", starts(s.Samples), s.Chunks, m.Groups, bytesText(s.ContentBytes), bytesText(m.PackBytes))
		if s.HeldOut > 0 {
			text += fmt.Sprintf("  another start finds %s of what it reads in it, and does not read %s of it\n", percent(s.Coverage), percent(s.Waste))
		}
		if m.Differ {
			text += fmt.Sprintf("  %d workloads read differently (%s in common at least): the profile has what each of them reads\n", s.Workloads, percent(m.Similarity))
		}
		if m.Left > 0 {
			text += fmt.Sprintf("  %d chunks that are needed last did not fit: --budget allows more\n", m.Left)
		}
		if n := m.Other + m.Unknown; n > 0 {
			text += fmt.Sprintf("  %s and %d chunks could not be used: they are not of this image\n", starts(m.Other), m.Unknown)
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

func percent(share float64) string { return fmt.Sprintf("%.3g %%", 100*share) }
