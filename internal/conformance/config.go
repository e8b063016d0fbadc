package conformance

import (
	"bytes"
	"crypto"
	"strings"
	"time"

	"github.com/gormsessions/gormsessions"
)

type hasherFunc func(string) []byte

func (f hasherFunc) Digest(token string) []byte { return f(token) }

// badConfigs are refused, by the field that their name begins with: R01, R09 and
// R24.
func badConfigs() map[string]gormsessions.Config {
	hashers := func(h ...gormsessions.Hasher) gormsessions.Config { return gormsessions.Config{Hashers: h} }
	good := gormsessions.Hash(crypto.SHA256)
	return map[string]gormsessions.Config{
		"TokenBytes R01 15":              {TokenBytes: 15},
		"TokenBytes R01 negative":        {TokenBytes: -1},
		"TokenBytes too many":            {TokenBytes: 200},
		"TokenBytes far too many":        {TokenBytes: 1 << 62},
		"IdleTimeout R24 negative":       {IdleTimeout: -1},
		"IdleTimeout R24 below µs":       {IdleTimeout: 999},
		"AbsoluteTimeout R24 negative":   {AbsoluteTimeout: -time.Hour},
		"TouchInterval R24 negative":     {TouchInterval: -1},
		"IdleTimeout R24 over absolute":  {IdleTimeout: 2 * time.Hour, AbsoluteTimeout: time.Hour},
		"RotationGrace R24 negative":     {RotationGrace: -1},
		"RotationGrace R24 Never":        {RotationGrace: gormsessions.Never},
		"Retention R24 negative":         {Retention: -time.Hour},
		"MaxPerOwner negative":           {MaxPerOwner: -1},
		"OnLimit unknown":                {MaxPerOwner: 1, OnLimit: 7},
		"OnLimit without a limit":        {OnLimit: gormsessions.Reject},
		"Prefix with space":              {Prefix: "a b"},
		"Prefix with control":            {Prefix: "a\n"},
		"Prefix not ASCII":               {Prefix: "ą"},
		"Prefix too long":                {Prefix: strings.Repeat("a", 33)},
		"Hashers[0] nil":                 hashers(nil),
		"Hashers[1] nil":                 hashers(good, nil),
		"Hashers[0] R09 MD5":             hashers(gormsessions.Hash(crypto.MD5)),
		"Hashers[0] R09 MD4":             hashers(gormsessions.Hash(crypto.MD4)),
		"Hashers[0] R09 MD5SHA1":         hashers(gormsessions.Salted(crypto.MD5SHA1, nil)),
		"Hashers[0] R09 none":            hashers(gormsessions.Hash(0)),
		"Hashers[0] R09 unknown":         hashers(gormsessions.Hash(99)),
		"Hashers[1] R09 short pepper":    hashers(good, gormsessions.HMAC(crypto.SHA256, bytes.Repeat([]byte("x"), 31))),
		"Hashers[0] R09 no pepper":       hashers(gormsessions.HMAC(crypto.SHA256, nil)),
		"Hashers[0] R09 HMAC of MD5":     hashers(gormsessions.HMAC(crypto.MD5, bytes.Repeat([]byte("x"), 32))),
		"Hashers[0] empty digest":        hashers(hasherFunc(func(string) []byte { return nil })),
		"Hashers[0] digest too long":     hashers(hasherFunc(func(string) []byte { return make([]byte, 65) })),
		"Hashers[0] plaintext, too long": {Hashers: []gormsessions.Hasher{gormsessions.Plaintext()}, TokenBytes: 64},
	}
}
