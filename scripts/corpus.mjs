// Builds the pretraining corpus of the shipped base model: English prose in the public domain.
//
//   node scripts/corpus.mjs [out] [--table models/builtin/SOURCES.md]
//
// Each book is one file of a GITenberg repository at a fixed commit, checked by SHA-256, kept in
// out/sources and not fetched again. The script removes the distributor's header, footer and
// credits, contents lists and illustration marks, unwraps lines, folds characters to ASCII and cuts
// the books at their chapters. It writes out/train.txt and out/heldout.txt: one blank line between
// paragraphs, a line <|endoftext|> after every chapter. Held-out books are whole, chosen by hash.
// Paragraphs with a racial slur are dropped; two books that lean on one are not in the list.
//
// Rule for a book to be here: published before 1929 (public domain in the United States), and the
// author, translator or editor on its title page died before 1955 (public domain where copyright
// lasts for life plus 70 years).

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

// Repository under github.com/GITenberg | commit | file | SHA-256 | title | author | published | died
const BOOKS = `
The-Blue-Fairy-Book_503|4d594f378f0dcaa61acc1791fafc6e6b0053ea41|503-0.txt|1dc3c13543d1a3b7baaa76f84dd45f444652cad9ea434c4849c32b66f073a29b|The Blue Fairy Book|Andrew Lang (ed.)|1889|1912
The-Red-Fairy-Book_540|d18e647375b7ea35355d72a032ea925b32b77e47|540-0.txt|8cd1a7810549f0d835068c889cf1a3d30ffd14391342c6054f712f02290415dd|The Red Fairy Book|Andrew Lang (ed.)|1890|1912
The-Green-Fairy-Book_7277|1177d3ea0e15d8792db31d20d817e182423ee098|7277-0.txt|f8820efcd3d5ddc527c4a67d48890d501fd27e873505c2b780e09df6338555fa|The Green Fairy Book|Andrew Lang (ed.)|1892|1912
Black-Beauty_271|da5c3341e9ebdcc27c3f8af47edffebb6b1095a8|271-0.txt|1cfc3689b80b42a3ee42e189c7d218d3e16d5f0c616ff042472be3ced85b7836|Black Beauty|Anna Sewell|1877|1878
A-Study-in-Scarlet_244|28ff9b2f49dad721efd60c4d5ba9645fad84f936|244-0.txt|af0f6c590ca3901b3f61d5b90acac1ac16abc83e50b8541c9f17aff079829d96|A Study in Scarlet|Arthur Conan Doyle|1887|1930
The-Sign-of-the-Four_2097|c36c6c7a4e7e5f7b8d17c9b19299e8ff996b414c|2097.txt|940b404710fc5cc8b3e9b4d19f91c12d8b1657f960eda9dea65a049b3ca05220|The Sign of the Four|Arthur Conan Doyle|1890|1930
The-Adventures-of-Sherlock-Holmes_1661|7e5dd2703fbf503c004063e96ab7c61262375e5f|1661-8.txt|87a68129bb1dd7c2eecca7a98f97c27bd507d9901a5e1115de765745a127a82e|The Adventures of Sherlock Holmes|Arthur Conan Doyle|1892|1930
The-Memoirs-of-Sherlock-Holmes_834|6a4b3489ac34fb2b01bb5f8e8097134b2e954d5c|834-0.txt|102dacb09661c6b2c84066be7c55c0877185254df85342efff4383e6ce674fb7|The Memoirs of Sherlock Holmes|Arthur Conan Doyle|1893|1930
The-Hound-of-the-Baskervilles_2852|bb11a2bd7e3cda991b7f83936e811a0f472c089c|2852-0.txt|c8a61868388cafca2c76d1d82ee610d24b2bb09913ba6da936c4aca94eb1d1e4|The Hound of the Baskervilles|Arthur Conan Doyle|1902|1930
The-Return-of-Sherlock-Holmes_108|723d6d49bca7b22e3b33e68af4df88ea6c12b459|108-0.txt|4da63e0998821e9d7f8a4c587d30e1cad2cb0c21a58f8631956ac9b719b36ae8|The Return of Sherlock Holmes|Arthur Conan Doyle|1905|1930
The-Lost-World_139|358626523d86f073e29deccb063418920ea11aeb|139.txt|f6b39bd6c79270d117e0a4e9a8814628e4185d356a0a6d6bd7116e74c389b7d5|The Lost World|Arthur Conan Doyle|1912|1930
Dracula_345|5216d6ea255fbf8966426a160b68251b18f16907|345-8.txt|665ff65cfa74655e6eba4e51deee9a05a8387abaa3170e0c6b65c44a7eea680c|Dracula|Bram Stoker|1897|1912
Household-Tales-by-Brothers-Grimm_5314|6e06b290ccb016cecd35a21c70ff2a36f45e1276|5314-8.txt|9d33b74d15860c25109606013b8af6089152c4cc0c5d4ac077a64d833878dba5|Household Tales|Brothers Grimm, tr. Margaret Hunt|1884|1863; 1859; 1912
The-Voyage-of-the-Beagle_944|a26cbdcdc1449627d1594dac877ad11396167791|944.txt|24b8d915eb5f61c091ee66403096bb3a950e3c0cb310caf086b6be0cc86781f1|The Voyage of the Beagle|Charles Darwin|1839|1882
The-Pickwick-Papers_580|79f55c76290bffafa10e82a60eefd85b359bc481|580-0.txt|d4e007ec55fe5918bf5d4ebb5f2ce5ee08c9193c54f424b5dd7ef188314b2dfe|The Pickwick Papers|Charles Dickens|1837|1870
Oliver-Twist_730|1cec930d0fc567cb650136b3d20406b4ac97a6e5|730.txt|439543573a12e30e9bc1472ca8d2754a0bc20d06cc529a0f3efb148816792a0d|Oliver Twist|Charles Dickens|1838|1870
Nicholas-Nickleby_967|bde4b67a9a1929ddbb1a9a31b12a6a861cfb7547|967-0.txt|209d3c74c720c186376ff8e6de6c48adb049b99fb257a813e8918cf08ab66003|Nicholas Nickleby|Charles Dickens|1839|1870
A-Christmas-Carol_46|b173bd3787848ecbded8d036ed9f5326c738da19|46-0.txt|919e060656548dd0bf5f615fe85932e67718b9a58e5a535d1ff7548c4380caeb|A Christmas Carol|Charles Dickens|1843|1870
David-Copperfield_766|1cfa9f937da3d37507885e00150ece32fb475da9|766-0.txt|405d8997c6c5047c6b3ceb5ad1388bd2d30aa78598952744e23a23cea7100e6b|David Copperfield|Charles Dickens|1850|1870
Bleak-House_1023|2fe2ed9f44a699aab35dfc84b69db6753a390c7f|1023.txt|51c12bd20b0c8efbe08578b4966adb9ece1805f2ff8d96e6b02c4562a4797449|Bleak House|Charles Dickens|1853|1870
Hard-Times_786|f48ca156e15f4be001487e68f093b0a826a7b2d5|786-0.txt|086a962bb93eb533c51b869136fc9bb7c472d4e302f090e2691d130538593813|Hard Times|Charles Dickens|1854|1870
A-Tale-of-Two-Cities_98|0f6111bc7237af7375295ec1754c2e57e19f67f1|98-0.txt|2fcfa071498b30724bd1bd714ba89e38477d632b86d74e87559f6259d3917e36|A Tale of Two Cities|Charles Dickens|1859|1870
Great-Expectations_1400|889db0e100928a957f469bf834c564d04065c8e6|1400-0.txt|b58ce42c630e06314f2442d5937fa8a8556b6e3c5c16f4713c7332a4bb50b420|Great Expectations|Charles Dickens|1861|1870
Jane-Eyre_1260|d8976a3c05269fb2ecb83d4575d82c6c2abe0012|1260.txt|bc74b04ec70c9283323f5043f3305c4b08e70650a96ca5a9e1c5e5c5b4c0aa9a|Jane Eyre|Charlotte Bronte|1847|1855
Five-Children-and-It_778|402e5e4747cb41e1b10ff208d94d834dd4775fc2|778.txt|9675b40c709474b2f4353304aac824b57a4c7354d181c8871c0d597ef80174ac|Five Children and It|E. Nesbit|1902|1924
The-Phoenix-and-the-Carpet_836|baa817f4823ada76de2c3c1db97cfe23e8266d6c|836-0.txt|259321ffbe4a5b393f13b06e380812e805fd82cb88b84ab191c60fea5b190d92|The Phoenix and the Carpet|E. Nesbit|1904|1924
The-Railway-Children_1874|cbde83dfe33b46bca9560b67a31b5cd98644bda5|1874-0.txt|4847f211c6416621f7e74afe24d3e7e7d7182a8821fb989abf85d92b86b88b5e|The Railway Children|E. Nesbit|1906|1924
The-Enchanted-Castle_3536|df337329dc6e204c3e12632d7b4b25a02a758c60|3536.txt|b1e0cf475f41e84d0d43dedcbe5d365267a9947acf31ea9a33c934a3af8b138d|The Enchanted Castle|E. Nesbit|1907|1924
Pollyanna_1450|32460e7edbf03555b8d15aa1022ced9ad5272dcc|1450-0.txt|776033b77648c9e7ff59f6371dc6903781b2e1b37a86d0e0e1a2e3cd98c4a250|Pollyanna|Eleanor H. Porter|1913|1920
Cranford_394|4403af75adc5b140f21f0786f408a64dae8d4e71|394-0.txt|4af9221b94f5206b5e3cdc6ba16d0aec5003fd293ed15acb9a73501d4ec0c639|Cranford|Elizabeth Gaskell|1853|1865
North-and-South_4276|aeffaffe76f31ee5bf6e9608e825e3b38947c025|4276.txt|0eeef1601e32c53fb1c729caf6d5314747b8f14b72eed8cbb3bb9ed8de405fef|North and South|Elizabeth Gaskell|1855|1865
Wuthering-Heights_768|7f246b8eba2cf744e757f7425c90ad362ecb8a99|768.txt|2ff1cd2fa12ecff82da679e889ca7645e132e7bcfd55768ea42a955abe12c1e1|Wuthering Heights|Emily Bronte|1847|1848
Little-Lord-Fauntleroy_479|6b74eb00141d43d7880de9fb4d6d62b714946386|479-0.txt|5c599db6594306fd67386fc804a16b03790e321f1564ec9181d92fc6fdf231f1|Little Lord Fauntleroy|Frances Hodgson Burnett|1886|1924
The-Secret-Garden_113|0031c0badd0d3fc83860c941d2f39d4aa345c51b|113-0.txt|8a7aebc835ae37baef0f7b9362ed9fc6372a360e8001f9481c13acf9194cb483|The Secret Garden|Frances Hodgson Burnett|1911|1924
The-Innocence-of-Father-Brown_204|64ff41e02cd79bdc2df51f494a98e71fb39e27f3|204-0.txt|8dde97c66d80dc47cc9df7888fcb2055da4ea87a1fd3c1b7d018ba6c4f7b5c14|The Innocence of Father Brown|G. K. Chesterton|1911|1936
Silas-Marner_550|a4c56c3b0a355f69ceba3fb73adf25579ad3ddd9|550.txt|46b39559666acdce85bfbea4d98df3b3db0e044bcbacd22f4a55ba86be76a189|Silas Marner|George Eliot|1861|1880
Middlemarch_145|39add53d31f10ba5cecdcbe8c095f90b25fd4b3f|145-8.txt|13423f5590be43aabc2d383386d544dc121eca306ced42cf790346733968a7f8|Middlemarch|George Eliot|1871|1880
The-Princess-and-the-Goblin_708|7ed7090ace0c8b73b456c519358173364f17edda|708.txt|103c5634780f3aacb7cd2384335305b6fba46b52971516ae8801ffff5b6d2387|The Princess and the Goblin|George MacDonald|1872|1905
The-Time-Machine_35|154a5c628743bd7d35d1af0fc4bcc017f0e111e1|35-0.txt|0eb70818a4c7e2e04f91be807bad37ca5c1475cd51cec2a7b620c4db2b595ce4|The Time Machine|H. G. Wells|1895|1946
The-Invisible-Man--A-Grotesque-Romance_5230|ab1e89f8c47a88426460bdfeb6111d82ee408f9a|5230.txt|567a5212f125554be4e0d882a986e5e0bf6bda45e60d51163ff9e1bd2501fbfb|The Invisible Man|H. G. Wells|1897|1946
The-War-of-the-Worlds_36|8b08fa3a7cbef117c80b2b437adc46e75c37dbf0|36-0.txt|0c9bea907452abd6e9a31d9152188ef5007f0e2d3e4a52d7a6a627a37616249f|The War of the Worlds|H. G. Wells|1898|1946
King-Solomon-s-Mines_2166|8232708d69e4bcab1a8c871b4c8df6128a4ce0c1|2166-8.txt|dad8af9f7e66ea6b33a503cfa0aa2ad010fc58cc72657b98cff4b50842eadbe4|King Solomon's Mines|H. Rider Haggard|1885|1925
The-Call-of-the-Wild_215|c1fcf9ec7af90edd09a7a2d3b6f1354b153494d0|215-0.txt|7b3e855dbc4e9833b0281a0bc1d527379d85c14f8dfb389ef916022d6e4d888c|The Call of the Wild|Jack London|1903|1916
White-Fang_910|1829d2f990175614318ca9374f38e4cdba435193|910.txt|cb8f3e4cfb99e34ad9741ebae21e177bf5fe5edc1c1342dcc5dea2bcdf53f3cb|White Fang|Jack London|1906|1916
Sense-and-Sensibility_161|1cd7ffed1c21536f6ee2fea4d68c96e2c12ce14c|161.txt|9109bd8aabe8f36d0814bd6f5afad1e278b1369d66c0d3846667f0659e119d27|Sense and Sensibility|Jane Austen|1811|1817
Pride-and-Prejudice_1342|81db45c9c48c592f0b77f01fc59e677ad0a5634e|1342-0.txt|48e0522844402a86a3ea98f0947ba85ea54838db3c59022299298ed968a5a163|Pride and Prejudice|Jane Austen|1813|1817
Mansfield-Park_141|013305e32f51ac4db88f39e220cb65d390213336|141-0.txt|15904304b4c9dd3847a96d60707e6ffb30e3558557e3cff7bc8887d17e145ba8|Mansfield Park|Jane Austen|1814|1817
Emma_158|9943f6422b9246e7ad37625d6bd014b035fbfdea|158-0.txt|89b601ce13c21eca31766bdd1a554842fc9ecb7d3638cc769f41712a523e24cf|Emma|Jane Austen|1815|1817
Northanger-Abbey_121|c1b554e6d17c67d26b4fbd4bcc92d7eb4f27b2e7|121-0.txt|bbd0f21dbcd079832245a4b9990caeada34965059974a99d2990507461b8647f|Northanger Abbey|Jane Austen|1818|1817
Persuasion_105|d408e95fc4098953e8dd8eb7cac6023802cb54f4|105-8.txt|cce830b4ba2eb09dd95c49bd1a2b55db9d859f21064da933b7f3abab73d02ebe|Persuasion|Jane Austen|1818|1817
Three-Men-in-a-Boat_308|6e15720e43584c948e5881301f760099a4a083c0|308-0.txt|8947f71d33499484c6d438a02df0146e037eb1052846b33e9822ff8b1536c5fa|Three Men in a Boat|Jerome K. Jerome|1889|1927
The-Thirty-Nine-Steps_558|9df1735568a61ce35d33dbd43cc07269c74aa859|558.txt|3311ea0e2c85065d81299be5246c186696362aaa0cd4fa314166888cfed3857c|The Thirty-Nine Steps|John Buchan|1915|1940
English-Fairy-Tales_7439|3194dc00b8f7b4e3d364ee5b3d7625b47a6be9d1|7439-0.txt|deef11602e7230a78e940aeed23e8b06d4690c44aa6cff4a20db3a4ee354e887|English Fairy Tales|Joseph Jacobs|1890|1916
Around-the-World-in-80-Days_103|1c75e1fc21039930c2a794e964ed41452b65ee45|103.txt|b5bd33ca78ea5edb314d0f543180229819e4617851c00246adf7ef27b4c6ec4d|Around the World in Eighty Days|Jules Verne, tr. G. M. Towle|1873|1905; 1893
Rebecca-of-Sunnybrook-Farm_498|99f6be444422ca758e96813de216496796128705|498.txt|4a8b5eee9b36995c06792b81dac44b22f635f909c6222423cd2d86775ad4795c|Rebecca of Sunnybrook Farm|Kate Douglas Wiggin|1903|1923
The-Wind-in-the-Willows_289|9032846214f647204585df2572cd19dd7fbc3c73|289-0.txt|f875d0ae7c153741c516d4db2f3c1686f8dd79e341ea27dbc2167178a09cd587|The Wind in the Willows|Kenneth Grahame|1908|1932
The-Wonderful-Wizard-of-Oz_55|d19a4315b7c6f4471de8840a1a81609b34841dff|55.txt|18274f31ae11aea07ea9b4f707998636c6f75d784c60d7e8fea0b4d5c2d77af6|The Wonderful Wizard of Oz|L. Frank Baum|1900|1919
The-Marvelous-Land-of-Oz_54|4b3fa2049e9b540472fa8acbed4297b8b778939c|54.txt|ed840664386fb16386a7e3e3a69ff6e2a9099a1cbb714a6eed4401205c5deb46|The Marvelous Land of Oz|L. Frank Baum|1904|1919
Ozma-of-Oz_486|464750b85f8552b44c38f8e0be426dba0fbd404e|486.txt|8363483af3b4c13501df617a41321f3535b19372ce63aaa2f6be8bb49ac8bc12|Ozma of Oz|L. Frank Baum|1907|1919
The-Emerald-City-of-Oz_517|024b35a8170910fee608f75e2d1a61f2872d76cc|517.txt|a27996e8e0c6b23c4ce5d232bc426bf9f99a347ea22b1e2b22c1e559aec7b0e5|The Emerald City of Oz|L. Frank Baum|1910|1919
Anne-of-Green-Gables_45|c786c2ba31478032da91043e2df66a163702182b|45-0.txt|7e99ec4f9f3080e3dd70551df7685709310a8140e3280436d0a4f5789255dd83|Anne of Green Gables|L. M. Montgomery|1908|1942
Anne-of-Avonlea_47|59eb474196e5415fd0edbf5ea3ac5761d6e4736e|47-0.txt|b812116c974b36f32b5c985880607ba1c488cfbf0437be11b00eeefacbbd07f2|Anne of Avonlea|L. M. Montgomery|1909|1942
Alice-s-Adventures-in-Wonderland_11|7f18748e114b994d5d9454d5793581bc0b9cf9d7|11-0.txt|49a0b2726606e1290ac03a63978fa1dd1bd38a8d805704d98265f393533ea094|Alice's Adventures in Wonderland|Lewis Carroll|1865|1898
Through-the-Looking-Glass_12|46dc9d18c6a61f94f15e9fb8977416c167fb3415|12-0.txt|24bae70935e7fce7be74357779c53861c0cd04b3687f3005c1a8687f2b909988|Through the Looking-Glass|Lewis Carroll|1871|1898
Little-Women_514|2b0c302d954a57cfa42c95d88ef053fd1b1aef55|514-8.txt|3399cd9ad757cb7891e8e9b48f97f6bec96ef9bb9beeb0304da9776d1d5fc9a1|Little Women|Louisa May Alcott|1868|1888
Little-Men_2788|d74bcefdef24ce28c6295899ce9eadf014ffe5d4|2788-0.txt|ce83343c4308172b9fca879fb25e420c9329f7f4e5edc74956136b45cc21b890|Little Men|Louisa May Alcott|1871|1888
The-Innocents-Abroad_3176|09f22c19048dd45835bd52da24e76bbd8f249b13|3176-0.txt|4c57ac3434eb59a86ff1817251b9166398dc6a1f1abfbf119024c52cd14e799c|The Innocents Abroad|Mark Twain|1869|1910
The-Adventures-of-Tom-Sawyer_74|9b4174649064f197ca27895d98806b4a8659722b|74-0.txt|b1cd5782db259c00bc1a8fbb58238f285e40828cc858c1343f74a0a75157cc91|The Adventures of Tom Sawyer|Mark Twain|1876|1910
The-Prince-and-the-Pauper_1837|e425ef5d138845955c87b4b07b683c7d019d1d0c|1837-0.txt|cc8b70736946e043166e8f6e00704c42fe3c1fc404f6eebc14f5e1a3f6237799|The Prince and the Pauper|Mark Twain|1881|1910
Life-on-the-Mississippi_245|fde8587b79059511c85d0fc9c07db60eb440dd29|245-0.txt|19d1a2416d894ef992687528f285e8b955cdaf94897018ff23dd18732387980d|Life on the Mississippi|Mark Twain|1883|1910
A-Connecticut-Yankee-in-King-Arthur-s-Court_86|0c41bb738e6886a324854da41c23eeb0149cf29a|86-0.txt|63521eb6381e7fcbcaca584aa0b9c6fa4e5c6b37cb4af75f742715791a0aa35e|A Connecticut Yankee in King Arthur's Court|Mark Twain|1889|1910
The-Picture-of-Dorian-Gray_174|2e7a9776d3179fac76db4370fd66231ac0f4c184|174.txt|0c9a2cbf188ca6534c60381b764ac37bf4594b16971aea5cc8263e83b9ce9a05|The Picture of Dorian Gray|Oscar Wilde|1891|1900
Treasure-Island_120|46f38f7b63dbda34415ce29ef5548023a8ba8dda|120-0.txt|0fee2fef1b2ffde22e2c962bd8bc2b75ea1ae9b02b3fe85ef08d44f4cc1bb2de|Treasure Island|Robert Louis Stevenson|1883|1894
Kidnapped_421|9c8d81a8c5a780094821215c578e9ec0f33461fa|421-0.txt|f2ea387ba7cae60ada941bb1b6b4cc1ee960582503eca48b9b602c9cd07dd237|Kidnapped|Robert Louis Stevenson|1886|1894
The-Strange-Case-of-Dr.-Jekyll-and-Mr.-Hyde_43|534f1e1d3193ffaf351570cf808e0ee6db70efe9|43-0.txt|31df0a9af1bce24ccbb5ab3ccb659603353accde5b7e40f7c5b887fb88173d48|The Strange Case of Dr. Jekyll and Mr. Hyde|Robert Louis Stevenson|1886|1894
The-Jungle-Book_236|4176c01078ec4c3db938df1245bca1cd81db86d0|236-0.txt|2f9486eb4776d23baf1064eebb73bb0093b808b13e10516e81e20d1dbe4909c9|The Jungle Book|Rudyard Kipling|1894|1936
Just-So-Stories_2781|7bac330e58eb319627c16b125f0f9f05957b57b4|2781-0.txt|18f8327c5d85c370333bb9b0ba989517821560012db858d1e52df54c9130ea6c|Just So Stories|Rudyard Kipling|1902|1936
What-Katy-Did_8994|63f1d2e34303b6d25859e069633c6d81eba746d9|8994-8.txt|43e6057cd406e6818568da458a487e9c5e885a1287ba3a241b46705494c60aea|What Katy Did|Susan Coolidge|1872|1905
Far-from-the-Madding-Crowd_107|dcf02b899d96ef97f066e6eb4797b8d78446852f|107-8.txt|bf6a2202689b1286715b366836c4130e5748fde21f63c674dc4aeefdd4f488ae|Far from the Madding Crowd|Thomas Hardy|1874|1928
The-Woman-in-White_583|f5a0780930ca6a67810bbf58353435eaca1d042c|583.txt|19007f23f185050fb09ec505260cd14fe0ff7286b11f69f2fd49515da8ff84f2|The Woman in White|Wilkie Collins|1860|1889
The-Moonstone_155|261e2a94a580a65e78fc3dac5349a54fdcf04b5f|155-0.txt|c7603d40299051f8bdde8dfe0e7c7bfb9b414a337fb3b04f5b7ff72342c0ffc0|The Moonstone|Wilkie Collins|1868|1889
Vanity-Fair_599|bcc3c8e2c447def9eb19cd74bf877617719b7ec4|599.txt|f87d4d8827cae32ddd94bea0558baaf48af26885a35777b5cb88c7aecf1297a9|Vanity Fair|William Makepeace Thackeray|1848|1863
`
  .trim()
  .split("\n")
  .map((line) => line.split("|"));

const END = "<|endoftext|>";
const HELDOUT_SHARE = 0.015;

const args = process.argv.slice(2);
const tableAt = args.indexOf("--table");
const tablePath = tableAt >= 0 ? args.splice(tableAt, 2)[1] : undefined;
const out = args[0] ?? ".cache/corpus";
mkdirSync(join(out, "sources"), { recursive: true });

const sha256 = (data) => createHash("sha256").update(data).digest("hex");

async function source([repo, commit, file, sha]) {
  const path = join(out, "sources", file);
  if (existsSync(path)) {
    const bytes = readFileSync(path);
    if (sha256(bytes) === sha) return bytes;
  }
  const url = `https://raw.githubusercontent.com/GITenberg/${repo}/${commit}/${file}`;
  const response = await fetch(url).catch((cause) => {
    throw new Error(`corpus: cannot reach ${url} — check the network.`, { cause });
  });
  if (!response.ok)
    throw new Error(`corpus: ${url} answered ${response.status} — try again later.`);
  const bytes = Buffer.from(await response.arrayBuffer());
  if (sha256(bytes) !== sha) {
    throw new Error(
      `corpus: ${file} has SHA-256 ${sha256(bytes)}, expected ${sha} — do not use it.`,
    );
  }
  writeFileSync(path, bytes);
  return bytes;
}

function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

/** The book between the distributor's header and footer. */
function body(text, file) {
  const start =
    /^\s*\*\*\* ?START OF TH(?:IS|E) PROJECT[\s\S]*?\*\*\*.*\n|^\*END.THE SMALL PRINT.*\n/m;
  const end = /^\s*(?:\*\*\* ?END OF TH(?:IS|E)|\*?(?:End of )?(?:the )?Project Gutenberg)/im;
  const opening = start.exec(text);
  if (!opening) throw new Error(`corpus: ${file} lacks the mark where the book starts.`);
  const rest = text.slice(opening.index + opening[0].length);
  const closing = end.exec(rest.slice(rest.length / 2));
  if (!closing) throw new Error(`corpus: ${file} lacks the mark where the book ends.`);
  return rest.slice(0, Math.ceil(rest.length / 2) + closing.index);
}

const FOLD = new Map(
  Object.entries({
    "‘": "'",
    "’": "'",
    "‚": "'",
    "‛": "'",
    "`": "'",
    "´": "'",
    "“": '"',
    "”": '"',
    "„": '"',
    "«": '"',
    "»": '"',
    "′": "'",
    "″": '"',
    "–": "-",
    "—": "--",
    "―": "--",
    "‐": "-",
    "‑": "-",
    "…": "...",
    æ: "ae",
    Æ: "AE",
    œ: "oe",
    Œ: "OE",
    ß: "ss",
    ø: "o",
    Ø: "O",
    ð: "d",
    þ: "th",
    ł: "l",
    "½": " 1/2",
    "¼": " 1/4",
    "¾": " 3/4",
    "°": " degrees",
    º: " degrees",
    "×": "x",
    "\u00a0": " ",
    "\u2009": " ",
    "\u200a": " ",
    "\u2003": " ",
    "\u00ad": "",
    "\ufeff": "",
    "\t": " ",
  }),
);

/** NFC, then straight quotes, ASCII dashes and bare letters; anything else outside ASCII is dropped. */
function ascii(text) {
  return text
    .normalize("NFC")
    .replace(/£ ?(\d[\d,]*)/g, "$1 pounds")
    .replace(
      /[^\n\x20-\x7e]/gu,
      (c) => FOLD.get(c) ?? c.normalize("NFD").replace(/[^\x20-\x7e]/gu, ""),
    )
    .replace(/[`]/g, "'");
}

const HEADING =
  /^(?:(?:the )?(?:chapter|book|part|letter|stave|volume|vol|adventure|act|section|preface|introduction|epilogue|prologue)\b|[ivxlc]+\.?$|[ivxlc]+\.? |\d+\.? )/i;

/** Paragraphs in order: { text, gap } with gap = number of blank lines before it. */
function paragraphs(text) {
  const result = [];
  let lines = [];
  let blank = 0;
  const flush = () => {
    if (lines.length === 0) return;
    const longest = Math.max(...lines.map((l) => l.trimEnd().length));
    const indented = lines.every((l) => /^ {2,}/.test(l));
    // Verse keeps its lines: three or more short ones, or an indented block.
    const isVerse =
      lines.length > 1 && ((indented && longest < 64) || (lines.length > 2 && longest < 48));
    const trimmed = lines.map((l) => l.trim().replace(/ +/g, " "));
    result.push({ text: trimmed.join(isVerse ? "\n" : " "), lines: trimmed, gap: blank });
    lines = [];
    blank = 0;
  };
  for (const line of text.split("\n")) {
    if (line.trim() === "") {
      flush();
      blank++;
    } else lines.push(line);
  }
  flush();
  return result;
}

const isProse = (p) =>
  p.text.length > 160 &&
  !p.text.includes("\n") &&
  p.lines.filter((l) => HEADING.test(l) || /\d$/.test(l)).length * 3 < p.lines.length;

/** Drops lists of contents and illustrations: from their heading to the next run of prose. */
function dropContents(list) {
  const kept = [];
  let skipping = false;
  for (let i = 0; i < list.length; i++) {
    if (
      /^(?:table of )?contents\b.{0,20}$|^(?:list of )?illustrations\b.{0,10}$/i.test(
        list[i].lines[0],
      )
    ) {
      skipping = true;
    }
    if (skipping && isProse(list[i])) {
      skipping = false;
      // The heading of the first chapter was skipped with the list; take back what stands next to it.
      const back = list[i - 1];
      if (back && back.text.length < 80 && back.lines.length === 1 && kept.at(-1) !== back)
        kept.push(back);
    }
    if (!skipping) kept.push(list[i]);
  }
  return kept;
}

function clean(text, file) {
  const bare = ascii(body(text.replace(/\r\n?/g, "\n"), file))
    .replace(/\[Illustration[^\]]*\]/gi, "")
    .replace(/\[(?:Footnote|Sidenote|Transcriber)[^\]]*\]/gi, "")
    .replace(/\[(?:\d+|[A-Z*]|pg\.? ?\d+|page \d+)\]|\{\d+\}/gi, "")
    .replace(/(^|[^A-Za-z0-9])[_=]+(?=[^\s_=])/gm, "$1")
    .replace(/[_|*{}]+/g, "")
    .replace(/^[ *.\-=~#<>+]+$/gm, "");
  const list = paragraphs(bare).filter(
    (p) =>
      /[A-Za-z]/.test(p.text) &&
      !/nig{2}er|line-art|full[- ]page|decorative|fulcrum edition|(?:wiretap )?online edition/i.test(
        p.text,
      ) &&
      !/gutenberg|e-?text|transcrib|proofread|ebook|html version|distributed proof/i.test(p.text) &&
      !/^produced by |^prepared by |^scanned by |^this edition |^copyright|^\[?end of /i.test(
        p.text,
      ) &&
      !/^(?:the end|finis|end|footnotes?:?)\.?$/i.test(p.text),
  );
  const sections = [[]];
  let size = 0;
  for (const p of dropContents(list)) {
    const isHeading = p.gap >= 2 && p.text.length <= 90 && !/[,;"]$/.test(p.text) && size > 1500;
    if (isHeading) {
      sections.push([]);
      size = 0;
    }
    sections.at(-1).push(p.text);
    size += p.text.length;
  }
  // A section without prose (title page, dedication, half title) goes.
  return sections
    .filter((s) => s.reduce((n, t) => n + t.length, 0) > 1000)
    .map((s) => s.join("\n\n"));
}

const books = [];
for (const book of BOOKS) {
  const chapters = clean(decode(await source(book)), book[2]);
  const bytes = chapters.reduce((n, c) => n + c.length + END.length + 2, 0);
  if (bytes < 50_000)
    throw new Error(`corpus: ${book[2]} left only ${bytes} bytes — check its format.`);
  books.push({ book, chapters, bytes });
}
const total = books.reduce((n, b) => n + b.bytes, 0);

// Held out: books in the order of their hash while they fit into the share.
let room = total * HELDOUT_SHARE;
for (const b of [...books].sort((a, b) => (a.book[3] < b.book[3] ? -1 : 1))) {
  b.isHeldout = b.bytes <= room;
  if (b.isHeldout) room -= b.bytes;
}

for (const name of ["train", "heldout"]) {
  // Chapters in the order of their hash, so a reader that takes the file in order sees all authors.
  const chapters = books
    .filter((b) => b.isHeldout === (name === "heldout"))
    .flatMap((b) => b.chapters.map((text) => ({ text, key: sha256(text) })))
    .sort((a, b) => (a.key < b.key ? -1 : 1));
  const text = chapters.map((c) => `${c.text}\n${END}\n`).join("");
  writeFileSync(join(out, `${name}.txt`), text);
  console.log(
    `${join(out, `${name}.txt`)}: ${text.length} bytes, ${chapters.length} chapters, SHA-256 ${sha256(text)}`,
  );
}

const rows = books.map(
  ({ book: [repo, commit, file, , title, author, year, died], chapters, bytes, isHeldout }) => {
    const url = `https://github.com/GITenberg/${repo}/blob/${commit}/${file}`;
    const why = `published ${year}; died ${died}`;
    return `| ${title} | ${author} | ${year} | [${repo}](${url}) | ${why} | ${chapters.length} | ${bytes} | ${isHeldout ? "heldout" : "train"} |`;
  },
);
const table = [
  "| Title | Author | Year | Source (GITenberg repository, fixed commit) | Why public domain | Chapters | Bytes | File |",
  "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ...rows,
].join("\n");
console.log(table);
console.log(`${books.length} books, ${total} bytes`);

if (tablePath) {
  mkdirSync(dirname(tablePath), { recursive: true });
  const text = `# Texts of the base model

The base model is pretrained on ${books.length} English books, ${(total / 1e6).toFixed(1)} MB after cleaning. \`node scripts/corpus.mjs\` rebuilds
the files from the sources below; \`--table\` writes this page.

Every book was published before 1929, so it is in the public domain in the United States, and the
author, translator or editor on its title page died before 1955, so it is in the public domain where
copyright lasts for life plus 70 years. Left out: books whose translator is unnamed or of unknown dates,
and two fairy books with tales translated by someone who died in 1957.

The source files come from Project Gutenberg by way of GITenberg. As their licence asks of copies that do
not carry its terms, every reference to Project Gutenberg is removed from the text. Paragraphs with a
racial slur are dropped, and two novels that use one throughout are not in the list.

${table}
`;
  writeFileSync(tablePath, text);
}
