// Stands where a driver's library is looked for; has nothing of one.
extern "C" {
extern const int amur_fake_driver;
const int amur_fake_driver = 1;
}
