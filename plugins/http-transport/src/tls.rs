//! The certificates that are trusted.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use sppo_plugin::PluginError;

/// A configuration that trusts the authorities of a file (PEM), or Mozilla's.
pub(crate) fn trusting(certificates: Option<&Path>) -> Result<ClientConfig, PluginError> {
    let roots = match certificates {
        Some(path) => authorities(path)?,
        None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PluginError::failed(format!("TLS cannot be used: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Advice for a TLS error, if there is something that the user can do about it.
pub(crate) fn explain(error: &(dyn Error + Send + Sync + 'static)) -> Option<String> {
    if let Some(wrapped) = error.downcast_ref::<io::Error>() {
        return wrapped.get_ref().and_then(explain);
    }
    match error.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidMessage(_) => {
            Some("no TLS is spoken there; its address may begin with http://".into())
        }
        error @ rustls::Error::InvalidCertificate(_) => {
            Some(format!("{error}; if you trust it, give its authority in `certificates`"))
        }
        _ => None,
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, PluginError> {
    let unusable = |reason: &dyn std::fmt::Display| {
        PluginError::configuration(format!("certificates: {}: {reason}", path.display()))
            .with_hint("give a file with certificates in PEM form")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))? {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    match roots.is_empty() {
        true => Err(unusable(&"there is no certificate in it")),
        false => Ok(roots),
    }
}
