package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/apparate/apparate/converter/check"
)

func newCheckCommand() *cobra.Command {
	var o check.Options
	var output string
	cmd := &cobra.Command{
		Use:   "check IMAGE",
		Short: "Prove that an accelerated image equals its source",
		Long: `Reads an accelerated image and the image it was made from, and compares them
for every platform and layer, entry by entry: names, types, modes, owners, times,
extended attributes, links, device numbers and contents; the config and its
history; and the table of contents that lazy starts read with the archive that
ordinary pulls read.

The exit code is 0 when they are equal and 1 when they are not.`,
		Example: `  apparate check registry.example.com/team/app:v1-apparate
  apparate check localhost:5000/fast/app:v1 --source localhost:5000/app:v1`,
		Args: exactArgs(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Image = args[0]
			return runCheck(cmd, o, output)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.Source, "source", "", "the image to compare with (default: the one it was made from, in the same repository)")
	fl.StringVar(&output, "output", "text", "text, or json for the report as JSON")
	fl.BoolVar(&o.PlainHTTP, "plain-http", false, "allow registries without TLS")
	fl.BoolVar(&o.Insecure, "insecure", false, "accept any TLS certificate")
	fl.StringVar(&o.TempDir, "temp-dir", "", "where a layer waits while it is compared (default: the system's directory for temporary files)")
	fl.IntVar(&o.MaxDifferences, "max-differences", check.DefaultMaxDifferences, "how many differences to list")
	return cmd
}

func runCheck(cmd *cobra.Command, o check.Options, output string) error {
	out := cmd.OutOrStdout()
	switch output {
	case "text":
		// For the eye only: in a log, standard error is for what went wrong.
		if w := cmd.ErrOrStderr(); terminalWidth(w) > 0 {
			o.Progress = func(c check.Compared) {
				_, _ = fmt.Fprintf(w, "%s layer %d of %d compared\n", c.Platform, c.LayerIndex, c.Layers)
			}
		}
	case "json":
	default:
		return usageError{fmt.Errorf("--output %q: use text or json", output)}
	}
	r, err := check.Check(cmd.Context(), o)
	if err != nil {
		return err
	}
	if output == "json" {
		err = json.NewEncoder(out).Encode(r)
	} else {
		err = printReport(out, &r)
	}
	if !r.Equal() {
		err = errors.Join(fmt.Errorf("%s differs from %s in %s: do not use it; 'apparate convert --force' makes it anew", r.Image, r.Source, places(r.Total)), err)
	}
	return err
}

func places(n int) string {
	if n == 1 {
		return "1 place"
	}
	return fmt.Sprintf("%d places", n)
}

// printReport tells a person what was found.
func printReport(w io.Writer, r *check.Report) error {
	for _, d := range r.Differences {
		if _, err := fmt.Fprintln(w, d); err != nil {
			return err
		}
	}
	if n := r.Total - len(r.Differences); n > 0 {
		if _, err := fmt.Fprintf(w, "... and %d more\n", n); err != nil {
			return err
		}
	}
	if !r.Equal() {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s equals %s\n  %d platforms, %d layers (%d the same blobs), %d entries, %s\n",
		r.Image, r.Source, len(r.Platforms), r.Layers, r.Copied, r.Entries, bytesText(r.Bytes))
	return err
}
