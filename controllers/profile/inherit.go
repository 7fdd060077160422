package profile

import (
	"context"
	"encoding/json"
	"errors"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/profile"
	oci "github.com/apparate/apparate/converter/registry"
)

const (
	// maxHeirs is how many conversions wait for a profile at once; of more the first
	// start makes one.
	maxHeirs = 256
	// maxElders is how many images of the repository are looked at for one that has a
	// profile, the newest first.
	maxElders = 3
)

// Heir is an accelerated image, or an index of several, that was just made.
type Heir struct {
	Registry           types.NamespacedName
	Repository, Digest string
}

// Converted tells of a conversion that succeeded: its image may take over the profile of
// an earlier one, under another tag. (What a tag had before, the conversion itself takes
// over.) It does not block.
func (k *Keeper) Converted(c *v1alpha1.ImageConversion) {
	k.init()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.heirs) < maxHeirs && c.Status.TargetDigest != "" {
		k.heirs = append(k.heirs, Heir{
			Registry:   types.NamespacedName{Namespace: c.Namespace, Name: c.Spec.RegistryRef.Name},
			Repository: c.Spec.Repository, Digest: c.Status.TargetDigest,
		})
	}
	k.wakeUp()
}

// heir takes the image whose turn it is.
func (k *Keeper) heir() (h Heir, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.heirs) == 0 {
		return h, false
	}
	h = k.heirs[0]
	k.heirs = k.heirs[1:]
	return h, true
}

// inherit lets an image take profiles over. It is a courtesy: where it
// fails, the first start makes a profile.
func (k *Keeper) inherit(ctx context.Context, h Heir) {
	ctx, cancel := context.WithTimeout(ctx, workTime)
	defer cancel()
	n, err := k.Inherit(ctx, h)
	if err != nil && ctx.Err() == nil {
		log.FromContext(ctx).Info("no profile is taken over", "repository", h.Repository, "manifest", h.Digest, "error", err.Error())
	}
	k.Metrics.inherited(n)
}

// Inherit implements Works.
func (w *Registries) Inherit(ctx context.Context, h Heir) (taken int, err error) {
	var r v1alpha1.Registry
	if err := w.Client.Get(ctx, h.Registry, &r); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	list, err := w.succeeded(ctx, &r, h.Repository)
	if err != nil || !r.Spec.AccelerationEnabled {
		return 0, err
	}
	access, err := w.Access.Access(ctx, &r)
	if err != nil {
		return 0, err
	}
	session, err := oci.NewSession(access.Options, r.Host(), oci.SessionLimit{})
	if err != nil {
		return 0, err
	}
	heirs, err := platforms(ctx, session, h.Repository, h.Digest)
	if err != nil {
		return 0, err
	}
	tried := map[string]bool{h.Digest: true}
	var problems []error
	for n := range list {
		digest := list[n].Status.TargetDigest
		if tried[digest] || digest == "" || len(tried) > maxElders || len(heirs) == 0 {
			continue
		}
		tried[digest] = true
		elders, err := platforms(ctx, session, h.Repository, digest)
		if fault.KindOf(err) == fault.NotFound {
			continue // deleted
		}
		if err != nil {
			return taken, errors.Join(append(problems, err)...)
		}
		for platform, heir := range heirs {
			if elder, ok := elders[platform]; ok && elder != heir {
				done, err := w.carry(ctx, candidate{registry: &r}, access.Options, h.Repository, elder, heir)
				problems = append(problems, err)
				if done {
					taken++
					delete(heirs, platform)
				}
			}
		}
	}
	return taken, errors.Join(problems...)
}

// carry gives the profile of one image to another.
func (w *Registries) carry(ctx context.Context, c candidate, o oci.Options, repository, from, to string) (bool, error) {
	client, elder, err := open(c, o, Image{Repository: repository, Manifest: from})
	if err != nil {
		return false, err
	}
	_, heir, err := open(c, o, Image{Repository: repository, Manifest: to})
	if err != nil {
		return false, err
	}
	carried, done, err := profile.Carry(ctx, client, elder, heir, profile.BuildOptions{TempDir: w.TempDir, Workers: workers})
	if done {
		log.FromContext(ctx).Info("a profile is taken over", "from", elder.String(), "to", heir.String(), "chunks", carried.Chunks, "gone", carried.Gone)
	}
	return done, err
}

// platforms are the manifests of an image by platform, "" for the only one of an image
// that is no index.
func platforms(ctx context.Context, s *oci.Session, repository, digest string) (map[string]string, error) {
	m, _, err := s.Look(ctx, repository, digest, "")
	if err != nil {
		return nil, err
	}
	var index struct {
		Manifests []struct {
			Digest   string `json:"digest"`
			Platform struct {
				OS           string `json:"os"`
				Architecture string `json:"architecture"`
				Variant      string `json:"variant"`
			} `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &index); err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest %s of %s cannot be read", digest, repository)
	}
	if index.Manifests == nil {
		return map[string]string{"": digest}, nil
	}
	all := map[string]string{}
	const most = 16
	for _, d := range index.Manifests {
		p := d.Platform
		if len(all) < most && p.OS != "unknown" && p.OS != "" {
			all[p.OS+"/"+p.Architecture+"/"+p.Variant] = d.Digest
		}
	}
	return all, nil
}
