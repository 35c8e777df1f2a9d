// SPDX-License-Identifier: MIT

package peer

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"time"
)

// Identity is the key by which a host is known to others: it shows it where it gives
// chunks and where it takes them.
type Identity struct {
	Certificate tls.Certificate
	Pin         string // hex SHA-256 of the public key, as it stands in the certificate
}

const pemKey = "PRIVATE KEY"

// NewKey returns a key in PEM: a secret, to be kept in a file that only its owner reads.
func NewKey() ([]byte, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// ParseIdentity returns the identity with a key of NewKey's. Its error does not quote it.
func ParseIdentity(key []byte) (Identity, error) {
	if block, _ := pem.Decode(key); block != nil && block.Type == pemKey {
		if any, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if k, ok := any.(ed25519.PrivateKey); ok {
				return identityOf(k)
			}
		}
	}
	return Identity{}, errors.New("the key is damaged: delete its file, and a new one is made")
}

// identityOf signs a certificate for the key with the key itself. Nobody looks at
// anything in it but the key.
func identityOf(key ed25519.PrivateKey) (Identity, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "minifleet-agent"},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(20, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Identity{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Pin: pinOf(leaf)}, nil
}

// pinOf names a certificate by its public key: the hex SHA-256 of its SubjectPublicKeyInfo.
func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
