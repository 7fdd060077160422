package converter

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// manifest is a manifest or index together with what it says.
type manifest struct {
	registry.Manifest
	doc *document
}

// fetch gets and reads a manifest.
func (j *job) fetch(ctx context.Context, ref name.Reference) (*manifest, error) {
	m, err := j.client.Manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(m.MediaType, dockerSchema1) {
		return nil, fault.New(fault.NotImage, nil, "%s has Docker's old manifest format, schema 1: push it again with a newer client", ref)
	}
	doc, err := parseDocument(m.Raw, ref.String())
	if err != nil {
		return nil, err
	}
	m.MediaType = manifestType(m.MediaType, doc)
	return &manifest{Manifest: m, doc: doc}, nil
}

// observe fills in how source and target stand.
func (j *job) observe(ctx context.Context) error {
	var err error
	if j.top, err = j.fetch(ctx, j.source); err != nil {
		return err
	}
	j.seen.SourceDigest = j.top.Digest
	if err := j.refuseOther(); err != nil {
		return err
	}
	if err := j.refuseSource(); err != nil {
		return err
	}
	if err := j.refusePlatform(ctx); err != nil {
		return err
	}
	j.previous, err = j.fetch(ctx, j.target)
	if fault.KindOf(err) == fault.NotFound || fault.KindOf(err) == fault.PullDenied {
		// Some registries deny what does not exist. If it is a matter of
		// rights, the check before the first push tells.
		j.previous, err = nil, nil
	}
	if err != nil {
		return err
	}
	return j.compare()
}

// refuseSource says why the source must not or cannot be converted, as far as
// its manifest tells.
func (j *job) refuseSource() error {
	if _, ours := j.top.doc.Annotations[image.AnnotationSourceDigest]; ours {
		return fault.New(fault.AlreadyAccelerated, nil, "%s is an accelerated image already: convert the image it was made from", j.source)
	}
	if isIndex(j.top.MediaType) {
		return nil
	}
	if why := notImage(j.top.doc); why != "" {
		return fault.New(fault.NotImage, nil, "%s is no container image: %s; only images can be accelerated", j.source, why)
	}
	return nil
}

// refusePlatform says that the source is one image, and not for a platform that
// was asked for. Only its config tells.
func (j *job) refusePlatform(ctx context.Context) error {
	if len(j.platforms) == 0 || isIndex(j.top.MediaType) {
		return nil
	}
	d := j.top.doc.Config
	raw, err := j.client.ReadBlob(ctx, j.source.Context(), d.Digest, d.Size)
	if err != nil {
		return err
	}
	c, err := parseConfig(raw, j.source.String())
	if err != nil || wanted(&c.platform, j.platforms) {
		return err
	}
	return fault.New(fault.NoPlatform, nil, "%s is an image for %s only", j.source, platformName(&c.platform))
}

// compare judges the target, if there is one.
func (j *job) compare() error {
	j.seen.Reason = ReasonTargetMissing
	if j.previous == nil {
		return nil
	}
	j.seen.TargetDigest = j.previous.Digest
	a := j.previous.doc.Annotations
	from, ours := a[image.AnnotationSourceDigest]
	switch {
	case !ours && !j.req.Force:
		return fault.New(fault.TargetTaken, nil,
			"%s exists and was not made by apparate: name the result with --to, or overwrite it with --force", j.target)
	case !ours:
		j.seen.Reason = ReasonTargetForeign
	case j.req.Force:
		j.seen.Reason = ReasonForced
	case from != j.seen.SourceDigest:
		j.seen.Reason = ReasonSourceChanged
	case a[image.AnnotationFormat] != image.FormatOf(string(j.req.Format)):
		j.seen.Reason = ReasonFormatChanged
	case !j.samePlatforms():
		j.seen.Reason = ReasonPlatformsChanged
	default:
		j.seen.Reason, j.seen.UpToDate = ReasonUpToDate, true
	}
	return nil
}

// samePlatforms says whether the target has just the platforms asked for.
func (j *job) samePlatforms() bool {
	if !isIndex(j.top.MediaType) {
		return true // one image, one platform
	}
	return maps.Equal(platformSet(j.top.doc, j.platforms), platformSet(j.previous.doc, nil))
}

func platformSet(d *document, asked []v1.Platform) map[string]bool {
	set := map[string]bool{}
	for _, m := range d.Manifests {
		if n := platformName(m.Platform); n != "" && wanted(m.Platform, asked) {
			set[n] = true
		}
	}
	return set
}

// recheck makes sure, just before the tag is put, that neither tag has moved
// since they were observed.
func (j *job) recheck(ctx context.Context) error {
	if tag, ok := j.source.(name.Tag); ok {
		now, err := j.client.Digest(ctx, tag)
		if err != nil {
			return err
		}
		if now != j.seen.SourceDigest {
			return fault.NewTemporary(fault.Superseded, nil,
				"%s was pushed again during the conversion (%s is now %s): convert it again", tag, j.seen.SourceDigest, now)
		}
	}
	now, err := j.client.Manifest(ctx, j.target)
	switch kind := fault.KindOf(err); {
	case kind == fault.NotFound || kind == fault.PullDenied:
		return nil
	case err != nil:
		return err
	case now.Digest == j.seen.TargetDigest || j.req.Force:
		return nil
	}
	doc, err := parseDocument(now.Raw, j.target.String())
	if err != nil {
		return err
	}
	if _, ours := doc.Annotations[image.AnnotationSourceDigest]; !ours {
		return fault.New(fault.TargetTaken, nil, "somebody pushed %s during the conversion: name the result with --to, or overwrite it with --force", j.target)
	}
	return nil
}

// platformList names the platforms of the images in the plan, each once.
func platformList(nodes []*node) []string {
	var all []string
	for _, n := range nodes {
		if p := platformName(n.platform); p != "" && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}
