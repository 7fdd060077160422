package main

import (
	"github.com/spf13/cobra"

	"github.com/apparate/apparate/snapshotter/source"
)

// credentialFlags say where the snapshotter finds credentials, beside docker's config.
type credentialFlags struct {
	dir, providers, providerBin string
}

func (c *credentialFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.dir, "credentials-dir", "", "directory of files *.json in the format of docker's config.json, whose keys may have a repository's path and wildcards; asked first")
	f.StringVar(&c.providers, "credential-provider-config", "", "kubelet's CredentialProviderConfig, a file or a directory: its plugins are asked before docker's config")
	f.StringVar(&c.providerBin, "credential-provider-bin-dir", "", "directory of the credential provider plugins")
}

// apply adds them to o.
func (c *credentialFlags) apply(o source.Options) source.Options {
	o.CredentialsDir, o.ProviderConfig, o.ProviderBinDir = c.dir, c.providers, c.providerBin
	return o
}
