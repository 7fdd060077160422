package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/encode"
)

// convertFlags are the flags of "apparate convert".
type convertFlags struct {
	req     converter.Request
	output  string
	format  string
	tempDir string
	workers int
}

func newConvertCommand() *cobra.Command {
	var f convertFlags
	cmd := &cobra.Command{
		Use:   "convert IMAGE",
		Short: "Make an accelerated image beside an image",
		Long: `Reads IMAGE from its registry and writes an accelerated image beside it: the
same name with "-apparate" behind the tag. Any runtime can pull the result; nodes
with the snapshotter start it without downloading it.

IMAGE stays as it is. The tag of the result moves last, when everything else is
there. A second run with the same image does nothing.

Credentials come from docker's config file ("docker login"). Registries on
loopback addresses may be without TLS.`,
		Example: `  apparate convert registry.example.com/team/app:v1
  apparate convert registry.example.com/team/app:v1 --to registry.example.com/fast/app:v1
  apparate convert localhost:5000/app:v1 --platform linux/amd64 --output json`,
		Args: exactArgs(1, "one image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.req.Source = args[0]
			return runConvert(cmd, f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.req.Target, "to", "", "name of the result (default: IMAGE's, with -apparate behind the tag)")
	fl.StringSliceVar(&f.req.Platforms, "platform", nil, "keep only these platforms, such as linux/amd64 (default: all)")
	fl.StringVar(&f.format, "format", string(encode.EStargz), "estargz (tar+gzip, which everything pulls) or zstd:chunked (tar+zstd, quicker to decompress)")
	fl.StringVar(&f.output, "output", "text", "text, or json for one line of JSON for each event")
	fl.BoolVar(&f.req.Predict, "predict", false, "give the image a start-up profile that is told from its entrypoint, until starts are recorded")
	fl.BoolVar(&f.req.Force, "force", false, "convert again although nothing changed, and overwrite a target that apparate did not make")
	fl.BoolVar(&f.req.PlainHTTP, "plain-http", false, "allow registries without TLS")
	fl.BoolVar(&f.req.Insecure, "insecure", false, "accept any TLS certificate")
	fl.StringVar(&f.tempDir, "temp-dir", "", "where converted layers wait for their upload (default: the system's directory for temporary files)")
	fl.IntVar(&f.workers, "workers", 0, "processors for each layer (default: all)")
	return cmd
}

func runConvert(cmd *cobra.Command, f convertFlags) error {
	out := cmd.OutOrStdout()
	var show *progress
	var jsonErr error
	switch f.output {
	case "json":
		enc := json.NewEncoder(out)
		f.req.Progress = func(e converter.Event) { jsonErr = errors.Join(jsonErr, enc.Encode(e)) }
	case "text":
		show = newProgress(out, terminalWidth(out))
		f.req.Progress = show.event
	default:
		return usageError{fmt.Errorf("--output %q: use text or json", f.output)}
	}
	if f.req.Format = encode.Format(f.format); f.req.Format != encode.EStargz && f.req.Format != encode.ZstdChunked {
		return usageError{fmt.Errorf("--format %q: use %s or %s", f.format, encode.EStargz, encode.ZstdChunked)}
	}
	if f.workers < 0 {
		return usageError{fmt.Errorf("--workers %d: use a number above 0", f.workers)}
	}
	c := converter.New(converter.Options{TempDir: f.tempDir, Workers: f.workers})
	r, err := c.Convert(cmd.Context(), f.req)
	if show != nil {
		show.clear()
	}
	if err != nil {
		return err
	}
	if show == nil {
		return jsonErr
	}
	return printResult(out, r)
}

// printResult tells a person what was done.
func printResult(w io.Writer, r converter.Result) error {
	if r.UpToDate {
		_, err := fmt.Fprintf(w, "%s is up to date\n", r.Target)
		return err
	}
	how := fmt.Sprintf("%d converted", r.Converted)
	if r.Reused > 0 {
		how += fmt.Sprintf(", %d reused", r.Reused)
	}
	if r.Copied > 0 {
		how += fmt.Sprintf(", %d copied as they are", r.Copied)
	}
	_, err := fmt.Fprintf(w, "%s\n  %d layers: %s; %s became %s; %s uploaded in %s\n  digest %s\n",
		r.Target, r.Layers, how, bytesText(r.SourceSize), bytesText(r.TargetSize),
		bytesText(r.BytesOut), r.Elapsed.Round(100*time.Millisecond), r.TargetDigest)
	return err
}

// terminalWidth is the width of the terminal behind w in columns; 0 when there is none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return 80
	}
	return width
}

// bytesText writes a number of bytes for people, in decimal units as registries do.
func bytesText(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 999.5 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.3g %s", v, units[i])
}
