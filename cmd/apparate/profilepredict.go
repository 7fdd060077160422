package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/apparate/apparate/converter/profile"
)

// predicted is what 'apparate profile predict' says of one platform.
type predicted struct {
	Image    string            `json:"image"`
	Platform string            `json:"platform,omitempty"`
	Done     bool              `json:"done"`
	Result   profile.Predicted `json:"result"`
}

func newProfilePredictCommand() *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "predict IMAGE",
		Short: "Make a start-up profile from the image alone, before anybody has started it",
		Long: `Tells from the entrypoint of an accelerated image what its containers read first: the
program, the libraries that it is linked with, scripts and their interpreters, what a program in
Python imports. 'apparate convert --predict' does the same to a new image.

A profile that the image has is left alone, and that of recorded starts takes the place of this one.`,
		Example: `  apparate profile predict registry.example.com/team/app:v1-apparate`,
		Args:    exactArgs(1, "an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			all, err := runProfilePredict(cmd.Context(), &f, args[0])
			if err != nil {
				return notAccelerated(err, args[0])
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(all)
			}
			return printPredicted(cmd.OutOrStdout(), all)
		},
	}
	f.register(cmd, false)
	f.registerOutput(cmd)
	cmd.Flags().StringVar(&f.tempDir, "temp-dir", "", "where the pack waits for its upload (default: the system's directory for temporary files)")
	return cmd
}

func runProfilePredict(ctx context.Context, f *profileFlags, image string) ([]predicted, error) {
	client, platforms, err := f.platforms(ctx, image)
	if err != nil {
		return nil, err
	}
	var all []predicted
	for _, p := range platforms {
		r, done, err := profile.Predict(ctx, client, p.Ref, profile.BuildOptions{TempDir: f.tempDir})
		if err != nil {
			return all, err
		}
		all = append(all, predicted{Image: p.Ref.String(), Platform: p.Name, Done: done, Result: r})
	}
	return all, nil
}

func printPredicted(w io.Writer, all []predicted) error {
	for i := range all {
		p := &all[i]
		text := fmt.Sprintf("%s: nothing was predicted: it has a profile, or starts nothing that is understood\n", p.Image)
		if p.Done {
			s := &p.Result.Summary
			text = fmt.Sprintf("%s has the profile %s\n  of what it starts: %d chunks of %d files, %s packed into %s\n",
				p.Image, p.Result.Descriptor.Digest, s.Chunks, p.Result.Files, bytesText(s.ContentBytes), bytesText(s.PackBytes))
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}
