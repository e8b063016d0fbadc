package tests

import (
	"crypto"
	"encoding/hex"
	"testing"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	_ "golang.org/x/crypto/blake2b"
	_ "golang.org/x/crypto/blake2s"
	//lint:ignore SA1019 sessions that were digested by it can be imported
	_ "golang.org/x/crypto/ripemd160"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// TestTwelveHashes signs in with every algorithm of ecto_sessions. The digests of
// "sample" are openssl's, but for the first, which its documentation gives.
func TestTwelveHashes(t *testing.T) {
	for h, want := range map[crypto.Hash]string{
		crypto.SHA256:      "af2bdbe1aa9b6ec1e2ade1d694f41fc71a831d0268e9891562113d8a62add1bf",
		crypto.SHA1:        "8151325dcdbae9e0ff95f9f9658432dbedfdb209",
		crypto.SHA224:      "9003e374bc726550c2c289447fd0533160f875709386dfa377bfd41c",
		crypto.SHA384:      "9a9083505bc92276aec4be312696ef7bf3bf603f4bbd381196a029f340585312313bca4a9b5b890efee42c77b1ee25fe",
		crypto.SHA512:      "39a5e04aaff7455d9850c605364f514c11324ce64016960d23d5dc57d3ffd8f49a739468ab8049bf18eef820cdb1ad6c9015f838556bc7fad4138b23fdf986c7",
		crypto.SHA3_224:    "1638fee01e8fef7163897a4611a2593a9c11aba9cb6777a148131843",
		crypto.SHA3_256:    "f68f564e181663381ef67ae5849d3dd1d0f1044cf468d0a0b7875e4ff121906f",
		crypto.SHA3_384:    "8f23fb75481bf0789135dd527583e9fe297e60dae5e8fe8f80d01efa3ebfed6cad8cab2510d84c0f739fe57054e5b40a",
		crypto.SHA3_512:    "6c3aa1e8f383d64a6db2411ba95e67b94bcf74fb1dddf0e302750ae6646715ccf5e618bd372789df8b65c7fa8afceab358b19683b5d1538895d0674bcbabb72d",
		crypto.BLAKE2b_512: "cc6c2d671173dd85a4ef30b0376d14980c20e54c69752fceb4abf6e583924309e15981e6aa728e9127d5a422b1afdd5cbe1a5d0097f34186f78424d5f3588859",
		crypto.BLAKE2s_256: "fa165bb27977bf597ca61f38af9f2b9b1b0f3cfee5720cf0a969fff4fe1e375b",
		crypto.RIPEMD160:   "a7855fe3b4e88d8cc0c783b946d4ebc7588ef611",
	} {
		t.Run(h.String(), func(t *testing.T) {
			hasher := gormsessions.Hash(h)
			if got := hex.EncodeToString(hasher.Digest("sample")); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			d := conformance.SQLiteFile()
			db := d.Open(t, d.Dialect(t), &gorm.Config{Logger: logger.Discard})
			sessions := gormsessions.New[conformance.UserSession](gormsessions.Config{Hashers: []gormsessions.Hasher{hasher}})
			if err := db.Use(sessions); err != nil {
				t.Fatal(err)
			}
			user := conformance.User{Name: "ada"}
			if err := db.Create(&user).Error; err != nil {
				t.Fatal(err)
			}
			session := conformance.UserSession{}
			session.OwnerID = user.ID
			if err := db.Create(&session).Error; err != nil {
				t.Fatal(err)
			}
			if len(session.TokenDigest) != h.Size() {
				t.Errorf("a digest of %d bytes, want %d", len(session.TokenDigest), h.Size())
			}
			if _, err := sessions.Authenticate(t.Context(), string(session.Token)); err != nil {
				t.Error(err)
			}
		})
	}
}
