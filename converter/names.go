package converter

import (
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
)

// name reads the names of source and target.
func (j *job) name() error {
	var err error
	if j.source, err = j.client.Parse(j.req.Source); err != nil {
		return err
	}
	if j.target, err = j.targetTag(); err != nil {
		return err
	}
	if j.target.String() == j.source.String() || j.target.String() == sourceTag(j.req.Source) {
		return fault.New(fault.BadName, nil, "%s would overwrite itself: give the result another name with --to", j.target)
	}
	j.seen.Source, j.seen.Target = j.source.String(), j.target.String()
	return nil
}

// targetTag returns the name that the result gets.
func (j *job) targetTag() (name.Tag, error) {
	if j.req.Target != "" {
		ref, err := j.client.Parse(j.req.Target)
		if err != nil {
			return name.Tag{}, err
		}
		tag, ok := ref.(name.Tag)
		if !ok {
			return name.Tag{}, fault.New(fault.BadName, nil, "%s has a digest: the result can only be named by a tag", j.req.Target)
		}
		return tag, nil
	}
	tag := ""
	if t, ok := j.source.(name.Tag); ok {
		tag = t.TagStr()
	} else if full := sourceTag(j.req.Source); full != "" {
		tag = full[strings.LastIndexByte(full, ':')+1:]
	}
	to, err := image.AcceleratedTag(tag)
	switch {
	case err == nil:
		return j.source.Context().Tag(to), nil
	case len(tag)+len(image.Suffix) > image.MaxTagLength:
		return name.Tag{}, fault.New(fault.TagTooLong, nil, "%s", err)
	case image.IsAcceleratedTag(tag):
		return name.Tag{}, fault.New(fault.AlreadyAccelerated, nil, "%s", err)
	}
	return name.Tag{}, fault.New(fault.BadName, nil, "%s: %s", j.req.Source, err)
}

// sourceTag returns the full name of the tag in "repository:tag@digest", which
// is lost when such a name is read as a digest; "" when there is none.
func sourceTag(image string) string {
	base, _, ok := strings.Cut(image, "@")
	if !ok || strings.LastIndexByte(base, ':') <= strings.LastIndexByte(base, '/') {
		return ""
	}
	t, err := name.NewTag(base)
	if err != nil {
		return ""
	}
	return t.String()
}

// parsePlatforms reads "os/architecture[/variant]".
func parsePlatforms(names []string) ([]v1.Platform, error) {
	var all []v1.Platform
	for _, s := range names {
		p, err := v1.ParsePlatform(s)
		if err != nil || p.OS == "" || p.Architecture == "" {
			return nil, fault.New(fault.BadName, err, "%q is no platform such as linux/amd64 or linux/arm64/v8", s)
		}
		all = append(all, *p)
	}
	return all, nil
}

// wanted says whether a platform was asked for.
func wanted(p *v1.Platform, asked []v1.Platform) bool {
	if len(asked) == 0 {
		return true
	}
	return p != nil && slices.ContainsFunc(asked, p.Satisfies)
}

// platformName is "os/architecture[/variant]"; "" when it is not known.
func platformName(p *v1.Platform) string {
	if p == nil || p.OS == "" || p.OS == "unknown" {
		return ""
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
