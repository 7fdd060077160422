package converter

import (
	"context"
	"fmt"
	"time"

	"github.com/apparate/apparate/converter/profile"
)

// Carrying profiles over is a courtesy: it may neither fail a conversion nor hold it up for long.
const (
	carryPatience = 2 * time.Minute
	maxCarried    = 8 // platforms
)

// ofPlatform is the manifest of an image for one platform.
type ofPlatform struct{ platform, digest string }

// carryProfiles gives the new images the start-up profiles of those that the
// target tag named before. It comes after the tag: the image counts, and can be used meanwhile.
func (j *job) carryProfiles(ctx context.Context) {
	if j.previous == nil || len(j.made) == 0 {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, carryPatience, fmt.Errorf("it took longer than %s", carryPatience))
	defer cancel()
	before := j.previousPlatforms(ctx)
	repo := j.target.Context()
	n := 0
	for _, now := range j.made {
		old, ok := before[now.platform]
		if !ok || old == now.digest || n >= maxCarried {
			continue
		}
		n++
		c, done, err := profile.Carry(ctx, j.client, repo.Digest(old), repo.Digest(now.digest), profile.BuildOptions{TempDir: j.o.TempDir, Workers: j.o.Workers})
		switch {
		case err != nil:
			j.emit(Event{Type: ProfileLost, Platform: now.platform, Digest: now.digest, Error: err.Error()})
		case done:
			j.result.Profiles++
			j.emit(Event{Type: ProfileCarried, Platform: now.platform, Digest: c.Descriptor.Digest, Reason: carriedReason(&c)})
		}
	}
}

// carriedReason says in a few words how much of a profile is still of use.
func carriedReason(c *profile.Carried) string {
	text := fmt.Sprintf("%d of %d chunks are in the new image", c.Chunks, c.Chunks+c.Gone)
	if c.Rebuilt {
		text += ", and were packed anew"
	}
	return text
}

// previousPlatforms are the manifests that the target tag led to, by platform.
// What cannot be read has no profile that could be carried over.
func (j *job) previousPlatforms(ctx context.Context) map[string]string {
	all := make(map[string]string)
	if isIndex(j.previous.MediaType) {
		for i := range j.previous.doc.Manifests[:min(len(j.previous.doc.Manifests), maxNodes)] {
			d := &j.previous.doc.Manifests[i]
			if p := platformName(d.Platform); p != "" {
				all[p] = d.Digest
			}
		}
		return all
	}
	if notImage(j.previous.doc) != "" {
		return all
	}
	d := j.previous.doc.Config
	raw, err := j.client.ReadBlob(ctx, j.target.Context(), d.Digest, d.Size)
	if err != nil {
		return all
	}
	if c, err := parseConfig(raw, j.target.String()); err == nil {
		all[platformName(&c.platform)] = j.previous.Digest
	}
	return all
}
