package profile

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/image"
	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/controllers/status"
	"github.com/apparate/apparate/converter/fault"
	oci "github.com/apparate/apparate/converter/registry"
)

// ReasonPublished is the reason of the event of an ImageConversion whose image has got
// a profile.
const ReasonPublished = "ProfilePublished"

// Registries does the work of a Keeper with the registries of Registry objects.
type Registries struct {
	// Client reads from a cache with conversion.Indexers.
	Client client.Reader
	Access *registry.Store
	// Matches says whether a rule is for a repository.
	Matches func(registry match.Key, repository string) bool
	Events  status.Recorder
	// TempDir is where packs wait for their upload; empty means the system's.
	TempDir string
}

var _ Works = (*Registries)(nil)

// candidate is a Registry that an image may be of, with what was converted there.
type candidate struct {
	registry    *v1alpha1.Registry
	conversions []v1alpha1.ImageConversion // of the image's repository, those that succeeded, the newest first
}

// imageOf is the image of a sample. Its names are not believed to be names.
func imageOf(s *api.Sample) (Image, error) {
	host, repository, ok := strings.Cut(s.Image, "/")
	if !ok || host == "" || repository == "" {
		return Image{}, fmt.Errorf("%.300q is no repository with its host", s.Image)
	}
	return Image{Host: strings.ToLower(host), Repository: repository, Manifest: s.Manifest}, nil
}

// Wanted implements Works.
func (w *Registries) Wanted(ctx context.Context, i Image) (bool, error) {
	all, err := w.candidates(ctx, i)
	return len(all) > 0, err
}

// candidates are the Registries with acceleration whose rules or conversions are for an
// image; those that have converted something of its repository come first. There may be
// several of one host, of which each has its own account.
func (w *Registries) candidates(ctx context.Context, i Image) ([]candidate, error) {
	var registries v1alpha1.RegistryList
	if err := w.Client.List(ctx, &registries, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	var all []candidate
	for n := range registries.Items {
		r := &registries.Items[n]
		if !r.Spec.AccelerationEnabled || !match.SameHost(r.Host(), i.Host) {
			continue
		}
		c := candidate{registry: r}
		var err error
		if c.conversions, err = w.succeeded(ctx, r, i.Repository); err != nil {
			return nil, err
		}
		if len(c.conversions) > 0 || w.Matches(client.ObjectKeyFromObject(r), i.Repository) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(min(len(b.conversions), 1), min(len(a.conversions), 1)),
			cmp.Compare(a.registry.Namespace, b.registry.Namespace), cmp.Compare(a.registry.Name, b.registry.Name))
	})
	return all, nil
}

// succeeded are the conversions of a repository that did, the newest first.
func (w *Registries) succeeded(ctx context.Context, r *v1alpha1.Registry, repository string) ([]v1alpha1.ImageConversion, error) {
	var all v1alpha1.ImageConversionList
	err := w.Client.List(ctx, &all, client.InNamespace(r.Namespace), client.UnsafeDisableDeepCopy,
		client.MatchingFields{conversion.IndexRepository: conversion.RepositoryKey(client.ObjectKeyFromObject(r), repository)})
	if err != nil {
		return nil, err
	}
	var list []v1alpha1.ImageConversion
	for n := range all.Items {
		if conversion.Succeeded(&all.Items[n]) {
			list = append(list, all.Items[n])
		}
	}
	slices.SortFunc(list, func(a, b v1alpha1.ImageConversion) int {
		return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
	})
	return list, nil
}

// first calls f with the candidates of an image, one after the other, until one's
// account is good for it.
func (w *Registries) first(ctx context.Context, i Image, f func(c candidate, o oci.Options) error) error {
	all, err := w.candidates(ctx, i)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("%w: no Registry is for it any more", errUnwanted)
	}
	var problems []error
	for _, c := range all {
		err := w.with(ctx, c, f)
		if err == nil || !denied(err) {
			return judge(err)
		}
		problems = append(problems, fmt.Errorf("with Registry %s/%s: %w", c.registry.Namespace, c.registry.Name, err))
	}
	return errors.Join(problems...)
}

func (w *Registries) with(ctx context.Context, c candidate, f func(c candidate, o oci.Options) error) error {
	access, err := w.Access.Access(ctx, c.registry)
	if err != nil {
		return err
	}
	return f(c, access.Options)
}

// denied says whether another account may be better.
func denied(err error) bool {
	kind := fault.KindOf(err)
	return kind == fault.PullDenied || kind == fault.PushDenied || errors.As(err, new(*registry.SecretError))
}

// judge says which errors will not pass.
func judge(err error) error {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.NotImage, fault.NotAccelerated, fault.ImageInvalid, fault.BadName, fault.ContentMissing:
		if err != nil && !fault.Temporary(err) {
			return fmt.Errorf("%w: %w", errUnwanted, err)
		}
	default:
	}
	return err
}

// tell makes the event of a profile, on the conversion that made its image.
func (w *Registries) tell(ctx context.Context, c candidate, o oci.Options, i Image, message string) error {
	found, err := conversionOf(ctx, c, o, i)
	if err != nil || found == nil {
		return err // of a conversion that history has not kept: metrics and log tell
	}
	w.Events.Event(found, corev1.EventTypeNormal, ReasonPublished, message)
	return nil
}

// conversionOf finds the conversion that made an image, which may be one platform of
// what it made; nil where it is forgotten.
func conversionOf(ctx context.Context, c candidate, o oci.Options, i Image) (*v1alpha1.ImageConversion, error) {
	for n := range c.conversions {
		if c.conversions[n].Status.TargetDigest == i.Manifest {
			return &c.conversions[n], nil
		}
	}
	session, err := oci.NewSession(o, c.registry.Host(), oci.SessionLimit{})
	if err != nil {
		return nil, err
	}
	const most = 8 // indexes that are looked into
	seen := map[string]bool{}
	for n := range c.conversions {
		digest := c.conversions[n].Status.TargetDigest
		if seen[digest] || digest == "" {
			continue
		}
		if seen[digest] = true; len(seen) > most {
			break
		}
		m, _, err := session.Look(ctx, i.Repository, digest, "")
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		var index struct {
			Manifests []struct {
				Digest string `json:"digest"`
			} `json:"manifests"`
		}
		if json.Unmarshal(m.Raw, &index) != nil {
			continue // somebody else's business
		}
		for _, child := range index.Manifests {
			if child.Digest == i.Manifest {
				return &c.conversions[n], nil
			}
		}
	}
	return nil, nil
}

// accelerated makes sure that a manifest is one of ours.
func accelerated(ctx context.Context, c candidate, o oci.Options, i Image) error {
	session, err := oci.NewSession(o, c.registry.Host(), oci.SessionLimit{})
	if err != nil {
		return err
	}
	m, _, err := session.Look(ctx, i.Repository, i.Manifest, "")
	if err != nil {
		return err
	}
	var doc struct {
		Annotations map[string]string `json:"annotations"`
		Layers      []struct{}        `json:"layers"`
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil || len(doc.Layers) == 0 || doc.Annotations[image.AnnotationSourceDigest] == "" {
		return fault.New(fault.NotAccelerated, nil, "%s/%s@%s is no accelerated image of a platform", i.Host, i.Repository, i.Manifest)
	}
	return nil
}
