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
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/converter/registry"
)

// shownFiles is how many names of files are shown.
const shownFiles = 20

func newProfileShowCommand() *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "show IMAGE|FILE",
		Short: "Say what is in an image's start-up profile, or in a file of recorded starts",
		Example: `  apparate profile show registry.example.com/team/app:v1-apparate
  apparate profile show app.json`,
		Args: exactArgs(1, "an image or a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if st, err := os.Stat(args[0]); err == nil && st.Mode().IsRegular() {
				samples, err := readSamples(args, nil)
				if err != nil {
					return err
				}
				return show(out, f.output, samples, printSamples)
			}
			profiles, err := findProfiles(cmd.Context(), &f, args[0])
			if err != nil {
				return notAccelerated(err, args[0])
			}
			return show(out, f.output, profiles, printProfiles)
		},
	}
	f.register(cmd, false)
	f.registerOutput(cmd)
	return cmd
}

func show[T any](w io.Writer, output string, v T, text func(io.Writer, T) error) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return text(w, v)
}

// shownProfile is what is shown of a profile.
type shownProfile struct {
	Image    string `json:"image"`
	Platform string `json:"platform,omitempty"`
	// Digest is the profile's manifest, Pack its pack.
	Digest  string      `json:"digest"`
	Pack    string      `json:"pack"`
	Groups  int         `json:"groups"`
	Summary api.Summary `json:"summary"`
	// Chunks, ContentBytes and PackBytes are what the table says.
	Chunks       int   `json:"chunks"`
	ContentBytes int64 `json:"contentBytes"`
	PackBytes    int64 `json:"packBytes"`
	// LastMillis is when the last chunk is needed, after the container was created.
	LastMillis uint32       `json:"lastMillis"`
	Layers     []shownLayer `json:"layers"`
	// Foreign is how many chunks no layer of the image has: they are thrown away.
	Foreign int `json:"foreign"`
	// Files are the first that are read.
	Files []string `json:"files"`
}

type shownLayer struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Chunks int    `json:"chunks"`
	Bytes  int64  `json:"bytes"`
}

// findProfiles finds the profiles of an image, one for each platform that has any.
func findProfiles(ctx context.Context, f *profileFlags, image string) ([]shownProfile, error) {
	client, platforms, err := f.platforms(ctx, image)
	if err != nil {
		return nil, err
	}
	var all []shownProfile
	for _, p := range platforms {
		found, ok, err := profile.Find(ctx, client, p.Ref)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		s, err := describe(ctx, client, p, &found)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		im, err := profile.Load(ctx, client, platforms[0].Ref)
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%s has no start-up profile: start it on a node and make one there with 'apparate profile push %s'", im.Ref, image)
	}
	return all, nil
}

// describe looks a profile's chunks up in the image.
func describe(ctx context.Context, client *registry.Client, p profile.Platform, f *profile.Found) (shownProfile, error) {
	t := f.Table
	s := shownProfile{
		Image: p.Ref.String(), Platform: p.Name, Digest: f.Descriptor.Digest, Pack: t.Pack, Groups: len(t.Groups), Summary: f.Summary,
		Chunks: t.Chunks(), ContentBytes: t.ContentBytes(), PackBytes: t.Size, Files: []string{},
	}
	im, err := profile.Load(ctx, client, p.Ref)
	if err != nil {
		return s, err
	}
	places, err := im.Resolve(ctx, t)
	if err != nil {
		return s, err
	}
	for _, l := range im.Layers {
		s.Layers = append(s.Layers, shownLayer{Digest: l.Digest, Size: l.Size})
	}
	i := 0
	for _, g := range t.Groups {
		for _, c := range g.Chunks {
			s.LastMillis = max(s.LastMillis, c.At)
			place, ok := places[i], places[i].Size > 0
			i++
			if !ok {
				s.Foreign++
				continue
			}
			s.Layers[place.Layer].Chunks++
			s.Layers[place.Layer].Bytes += c.Size
			if len(s.Files) < shownFiles && !slices.Contains(s.Files, place.Name) {
				s.Files = append(s.Files, place.Name)
			}
		}
	}
	return s, nil
}

func printProfiles(w io.Writer, all []shownProfile) error {
	var errs []error
	for i := range all {
		errs = append(errs, all[i].print(w))
	}
	return errors.Join(errs...)
}

func (p *shownProfile) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { _, _ = fmt.Fprintf(t, name+"\t"+format+"\n", args...) } // Flush tells
	s := &p.Summary
	line("image", "%s", strings.TrimSpace(p.Image+" "+p.Platform))
	line("profile", "%s, made %s", p.Digest, s.Created.Local().Format(time.DateTime))
	from := starts(s.Samples)
	if s.Workloads > 1 {
		from += fmt.Sprintf(" of %d workloads", s.Workloads)
	}
	if s.CarriedFrom != "" {
		from += ", carried over from " + s.CarriedFrom
	}
	if s.Predicted {
		from = "what the image starts, before anybody had started it"
	}
	line("made of", "%s", from)
	line("pack", "%s in %d groups; %d chunks, %s unpacked, the last needed after %d ms", bytesText(p.PackBytes), p.Groups, p.Chunks, bytesText(p.ContentBytes), p.LastMillis)
	if s.HeldOut > 0 {
		line("measured", "another start finds %s of what it reads in it, and does not read %s of it", percent(s.Coverage), percent(s.Waste))
	} else {
		line("measured", "not yet: that takes two starts")
	}
	if p.Foreign > 0 {
		line("of no use", "%d chunks, which no layer has", p.Foreign)
	}
	if s.Without != nil {
		line("without", "%s", costText(s.Without))
	}
	if s.With != nil {
		line("with", "%s", costText(s.With))
	}
	if text := savings(s); text != "" {
		line("saves", "%s", text)
	}
	for i, l := range p.Layers {
		line(fmt.Sprintf("layer %d", i+1), "%d chunks, %s, of %s compressed", l.Chunks, bytesText(l.Bytes), bytesText(l.Size))
	}
	if len(p.Files) > 0 {
		line("reads first", "%s", printable(strings.Join(p.Files, " ")))
	}
	return t.Flush()
}

// costText says what a start cost.
func costText(o *api.Outcome) string {
	return fmt.Sprintf("%d requests, %s fetched, %s of a pack; %d reads waited %s", o.Requests, bytesText(o.FetchedBytes), bytesText(o.PackBytes), o.WaitedReads, millis(o.WaitMillis))
}

// savings says what the profile saves: as measured where there were starts with
// one and without, else what may be expected.
func savings(s *api.Summary) string {
	switch {
	case s.Without == nil:
		return ""
	case s.With != nil:
		return fmt.Sprintf("%d requests, %s and %s of waiting at each start, as measured", s.Without.Requests-s.With.Requests,
			signedBytes(s.Without.FetchedBytes+s.Without.PackBytes-s.With.FetchedBytes-s.With.PackBytes), millis(s.Without.WaitMillis-s.With.WaitMillis))
	}
	share := 1.0
	if s.HeldOut > 0 {
		share = s.Coverage
	}
	part := func(n int64) int64 { return int64(share * float64(n)) }
	requests := max(0, part(s.Without.Requests)-1)
	return fmt.Sprintf("about %d requests, %s and up to %s of waiting at each start, as estimated", requests,
		signedBytes(part(s.Without.FetchedBytes)-s.PackBytes), millis(part(s.Without.WaitMillis)))
}

func signedBytes(n int64) string {
	if n < 0 {
		return "-" + bytesText(-n)
	}
	return bytesText(n)
}

func millis(n int64) string { return (time.Duration(n) * time.Millisecond).String() }

// printable keeps names of files from moving the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

func printSamples(w io.Writer, samples []api.Sample) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { _, _ = fmt.Fprintf(t, name+"\t"+format+"\n", args...) } // Flush tells
	for i := range samples {
		s := &samples[i]
		line("start", "%s of %s@%s %s", s.Started.Local().Format(time.DateTime), s.Image, s.Manifest, s.Platform)
		if s.Workload != "" {
			line("  workload", "%s", printable(s.Workload))
		}
		ready := ""
		if s.ReadyMillis > 0 {
			ready = ", ready after " + millis(s.ReadyMillis)
		}
		chunks := 0
		for j := range s.Layers {
			chunks += s.Layers[j].Len()
		}
		line("  read", "%d chunks of %d layers in %s%s", chunks, len(s.Layers), millis(s.DurationMillis), ready)
		with := "without a profile"
		if s.Profile != "" {
			with = "with the pack " + s.Profile
		}
		line("  cost", "%s, %s", costText(&s.Outcome), with)
	}
	return t.Flush()
}
